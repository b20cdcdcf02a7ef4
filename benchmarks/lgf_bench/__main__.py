"""`python -m lgf_bench`: `lgf bench` of the checkout that Python finds first."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
