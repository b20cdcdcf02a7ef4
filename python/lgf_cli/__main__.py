"""`python -m lgf_cli`, for launchers that start modules: `accelerate launch -m lgf_cli train ...`."""

import sys

from .main import main

sys.exit(main())
