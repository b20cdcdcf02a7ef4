"""Parts of the families' folders of tests that tests of all families use.

`calls.py` of a family has LOSSES: name -> a function `(student, teacher, **options) -> loss` of one number, for features
(B, T, H, W, C) and (B, T, H, W, C').

`triton_cases.py` of a family with Triton kernels has CASES and BUGS, calls that the model of a GPU runs, and mistakes that
it must notice; ON_HOPPER, cases that continuous integration runs compiled for Hopper; rows_of_tables, a
call for every configuration; quicken, which cuts the kernels for the interpreter; and launch_every_kernel, which calls
every launcher at one resolution.
"""

import importlib
import importlib.util
from types import ModuleType

from lgf_kernels.core.registry import families


def of_every_family(part: str) -> dict[str, ModuleType]:
    """Return a part of the folder of tests of every family that has it."""
    names = [name for name in families() if importlib.util.find_spec(f"{name}.{part}")]
    return {name: importlib.import_module(f"{name}.{part}") for name in names}


def losses() -> dict:
    """Return the losses of all families by their names."""
    return {name: loss for calls in of_every_family("calls").values() for name, loss in calls.LOSSES.items()}
