"""`python -m lgf_cli`, for launchers that start modules: `accelerate launch -m lgf_cli train ...`."""

import sys

from .main import main

if __name__ == "__main__":  # and not where a worker that is spawned imports it
    sys.exit(main())
