"""Teachers, one file a kind."""
