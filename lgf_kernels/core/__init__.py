"""Code that every family of operators uses: the table of operators, autograd, checks, numerics, launchers."""
