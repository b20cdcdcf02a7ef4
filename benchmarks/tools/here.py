"""The packages of this checkout before any that are installed: `import here` comes first in a script that may run without pip."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "benchmarks")]
