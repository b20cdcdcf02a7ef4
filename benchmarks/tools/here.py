"""The packages of this checkout before any that are installed: `import here` comes first in a script that may run without pip."""

import sys
import time
from pathlib import Path

#: When the script began, before it imported torch.
BEGUN = time.monotonic()
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "benchmarks")]
