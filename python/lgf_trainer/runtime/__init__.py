"""Settings, files and processes of a run."""
