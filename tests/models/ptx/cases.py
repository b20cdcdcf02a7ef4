"""Cases of the families on the model, and bugs that it must notice. The program prints a JSON line for each.

PYTHONPATH=tests python -m models.ptx.cases                       what the tests run
PYTHONPATH=tests python -m models.ptx.cases gram_flow bugs        a family, the bugs
PYTHONPATH=tests python -m models.ptx.cases more                  the cases that continuous integration leaves out
PYTHONPATH=tests python -m models.ptx.cases sm_90                 compiled for Hopper, and not for Ampere
PYTHONPATH=tests python -m models.ptx.cases sm_90 few             what of it continuous integration runs
PYTHONPATH=tests python -m models.ptx.cases configurations        every row of the tables of configurations, in some minutes
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel is not compiled
# What is compiled here ends with PTX (`triton_launcher`), and must not be found by those who need the machine code.
os.environ["TRITON_CACHE_DIR"] = os.path.join(os.environ.get("TRITON_CACHE_DIR", "build/triton"), "ptx")

import torch
from support import families

from lgf_kernels.core import registry
from lgf_kernels.core import triton_launch as launch

from . import bugs
from . import triton_launcher as launcher
from .case import Case
from .memory import Fault
from .spelling import Unknown


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
    except (Fault, Unknown) as fault:
        return {"fault": str(fault)}


def run_case(case: Case) -> dict:
    """Run a case, with its row wherever a configuration of that kind is chosen."""
    torch.manual_seed(0)
    chosen = []

    def choose(rows: Sequence[NamedTuple]) -> NamedTuple:
        chosen.append(case.row if isinstance(rows[0], type(case.row)) else rows[0])
        return chosen[-1]

    with launch.overridden(choose=choose):
        found = noticed(case.errors)
    assert case.row in (None, *chosen), f"no kernel of {case} has a configuration of this kind"
    return found


def of_ampere(part: ModuleType, words: Sequence[str]) -> Iterator[tuple[str, Callable]]:
    """Yield the names of cases and bugs of a family, and functions that run them."""
    every_row, more = "configurations" in words, "more" in words
    for case in part.rows_of_tables() if every_row else part.MORE if more else part.CASES:
        yield str(case), partial(run_case, case)
    for name, run in () if every_row or more else part.BUGS.items():
        yield name, partial(noticed, run)


def of_hopper(part: ModuleType, words: Sequence[str]) -> Iterator[tuple[str, Callable]]:
    every_row, few = "configurations" in words, "few" in words
    for case in part.rows_of_tables() if every_row else part.ON_HOPPER if few else [*part.CASES, *part.MORE]:
        yield str(case), partial(run_case, case)


def bugs_of(hopper: bool, few: bool) -> Iterator[tuple[str, Callable]]:
    if not hopper:
        for name, run in bugs.BUGS.items():
            yield name, partial(noticed, run)
        return
    for name, (right, wrong, _) in (bugs.ON_HOPPER if few else bugs.ON_HOPPER | bugs.MORE_ON_HOPPER).items():
        yield name, partial(noticed, partial(bugs.edited, right, wrong, tokens=150, channels=72))


def main() -> None:
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` returns with NaN
    offer_triton()
    words = sys.argv[1:]
    with launcher.launched_on_model(90 if "sm_90" in words else 80):
        print_results(words)


def print_results(words: Sequence[str]) -> None:
    parts = families.of_every_family("triton_cases")
    wanted = [word for word in words if word in (*parts, "bugs")] or [*parts, "bugs"]
    hopper = "sm_90" in words
    for part in (parts[name] for name in parts if name in wanted):
        for name, run in (of_hopper if hopper else of_ampere)(part, words):
            print(json.dumps({"case": name} | run()), flush=True)
    with_bugs = "bugs" in wanted and not {"configurations", "more"} & set(words)
    for name, run in bugs_of(hopper, "few" in words) if with_bugs else ():
        print(json.dumps({"case": name} | run()), flush=True)


if __name__ == "__main__":
    main()
