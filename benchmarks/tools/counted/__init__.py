"""Work of the kernels of each family, for `kernel_counts.py`: one file a family, found by its name."""
