"""What a run needs around its arithmetic: settings, files, processes."""
