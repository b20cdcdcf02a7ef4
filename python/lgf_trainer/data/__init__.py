"""Videos, windows and samples."""
