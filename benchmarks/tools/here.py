"""Search path with the packages of this checkout before installed ones; scripts that need no installation import it first."""

import sys
import time
from pathlib import Path

#: When the script began, before it imported torch.
BEGUN = time.monotonic()
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "benchmarks")]
