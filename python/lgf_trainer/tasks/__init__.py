"""Tasks, one file each: what a run trains."""
