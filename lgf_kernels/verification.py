"""The report of `lgf verify`: every backend of every operator against the portable one, on a device of this machine."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .core import verify
from .core.registry import OPERATORS, Call, able

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Backends that are not checked: the one to compare with, and the formulas themselves, which have no backward of their own.
TRUSTED = ("portable", "reference")


class Check(NamedTuple):
    """One check of a backend, with the type and the options of a call."""

    call: Call
    backend: str


class Row(NamedTuple):
    """What a check found."""

    operator: str
    backend: str
    dtype: str
    options: str
    right: bool
    found: str
    milliseconds: float | None


def checks(device: str) -> list[Check]:
    """Return the checks that a device can run."""
    return list(_checks(device))


def _checks(device: str) -> Iterator[Check]:
    for operator in OPERATORS.values():
        for facts in operator.proof.variants if operator.proof else ():
            for dtype in DTYPES:
                call = Call(operator.name, device, dtype, facts=tuple(facts.items()))
                rows = (row for row in able(call) if row.name not in TRUSTED and not row.unchosen_reason(call))
                yield from (Check(call, row.name) for row in rows)


def run(check: Check) -> Row:
    """Compare and time one backend now, whatever has been found before."""
    call, backend = check
    trial, _ = OPERATORS[call.operator].proof
    right, reason, seconds = verify.check(call, backend, lambda: trial(call, False), lambda: trial(call, True))
    options = ", ".join(f"{name}={value}" for name, value in call.facts)
    dtype = str(call.dtype).removeprefix("torch.")
    return Row(call.operator, backend, dtype, options, right, reason, 1e3 * seconds if right else None)
