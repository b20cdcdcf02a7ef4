"""The families of operators that are measured: all files of this folder.

A file contributes the tables that it has: OPERATORS (classes of cases), CASES, BASELINES and PEERS (by name),
`sweeps(gpu)`, and TUNED, which `benchmarks/tools/tune.py` reads. Nothing outside it names what is in it, so that a new
family is a new file.
"""

import importlib
import pkgutil

from .base import Case, Provider, Sweep, Tuned

_FILES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]


def _merged(table: str) -> dict:
    return {name: entry for file in _FILES for name, entry in getattr(file, table, {}).items()}


#: Operator -> the class of its cases.
OPERATORS: dict[str, type[Case]] = {it.operator: it for file in _FILES for it in getattr(file, "OPERATORS", ())}
CASES: dict[str, Case] = _merged("CASES")
TUNED: tuple[Tuned, ...] = tuple(it for file in _FILES for it in getattr(file, "TUNED", ()))


def baselines_and_peers(operator: str) -> dict[str, Provider]:
    """Return the providers of an operator that are not this library, by name."""
    files = [file for file in _FILES if OPERATORS[operator] in getattr(file, "OPERATORS", ())]
    entries = [
        entry for table in ("BASELINES", "PEERS") for file in files for entry in getattr(file, table, {}).items()
    ]
    return {name: it for name, it in entries if operator in (it.operators or OPERATORS)}


def sweeps(gpu: bool) -> dict[str, Sweep]:
    """Return the sweeps of all families by name; a GPU gets larger sizes, which take it as long as the others a CPU."""
    return {name: it for file in _FILES if hasattr(file, "sweeps") for name, it in file.sweeps(gpu).items()}
