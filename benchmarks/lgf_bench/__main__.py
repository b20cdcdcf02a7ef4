"""`python -m lgf_bench`: `lgf bench` of the checkout that Python finds first."""

import sys

from lgf_cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")  # results record the command as `lgf` has it
    sys.exit(main())
