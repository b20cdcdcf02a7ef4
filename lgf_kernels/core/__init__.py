"""What every family of operators stands on: the table of operators, autograd, checks, numbers, launchers."""
