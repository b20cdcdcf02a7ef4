"""Cases of the families on the model, and bugs that it must notice. The program prints a JSON line for each.

PYTHONPATH=tests python -m models.ptx.cases                       what the tests run
PYTHONPATH=tests python -m models.ptx.cases gram_flow bugs        a family, the bugs
PYTHONPATH=tests python -m models.ptx.cases sm_90 gram_flow       compiled for Hopper, and not for Ampere
PYTHONPATH=tests python -m models.ptx.cases configurations        every row of the tables of configurations, in some minutes
"""

import json
import os
import sys
from collections.abc import Callable
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel is not compiled

import torch
from support import families

from lgf_kernels.core import registry
from lgf_kernels.core import triton_launch as launch

from . import bugs
from . import triton_launcher as launcher
from .case import Case
from .memory import Fault


def offer_triton() -> None:
    """Let every operator's Triton backend run CPU tensors."""
    for operator in list(registry.OPERATORS.values()):
        rows = [
            r._replace(unsupported_reason=registry.no_reason) if r.name == "triton" else r for r in operator.backends
        ]
        registry.register(operator.name, operator.package, *rows)


def noticed(run: Callable) -> dict:
    try:
        return {"result": run()}
    except Fault as fault:
        return {"fault": str(fault)}


def run_case(case: Case) -> dict:
    torch.manual_seed(0)
    if case.row is None:
        return noticed(case.errors)
    with mock.patch.object(*case.chosen_by, lambda *arguments: [case.row]):
        return noticed(case.errors)


def main() -> None:
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` returns with NaN
    offer_triton()
    words = sys.argv[1:]
    launcher.launched_on_model(launch, 90 if "sm_90" in words else 80)
    parts = families.of_every_family("triton_cases")
    every_row = "configurations" in words
    wanted = [name for name in words if name not in ("configurations", "sm_90")] or [*parts, "bugs"]
    for part in (parts[name] for name in parts if name in wanted):
        for case in part.rows_of_tables() if every_row else part.CASES:
            print(json.dumps({"case": str(case)} | run_case(case)), flush=True)
        for name, run in () if every_row else part.BUGS.items():
            print(json.dumps({"case": name} | noticed(run)), flush=True)
    for name, run in bugs.BUGS.items() if "bugs" in wanted and not every_row else ():
        print(json.dumps({"case": name} | noticed(run)), flush=True)


if __name__ == "__main__":
    main()
