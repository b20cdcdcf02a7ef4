"""Cost as work grows: one quantity varies, the rest stays, and the exponent is fitted.

On a double logarithmic scale cost = a * size^b is a line; b is its slope by least squares. Small sizes, where the overhead of
a call counts, pull b down: the sizes begin where it does not.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .families.base import Sweep
from .table import TERMINAL, number, tabulated

#: Providers that are swept unless others are asked for: compiling anew for every size would take hours.
PROVIDERS = ("eager", "native", "triton", "portable")


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return the slope of log cost over log size; None with fewer than two sizes or a cost that is not positive."""
    if len(set(sizes)) < 2 or min(costs) <= 0:
        return None
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, costs)]).slope


class Curve(NamedTuple):
    """Costs of one provider in a sweep, by size."""

    sizes: list[int]
    milliseconds: list[float]
    bytes: list[int | None]
    floor_ms: list[float]

    @property
    def time_exponent(self) -> float | None:
        return exponent(self.sizes, self.milliseconds)

    @property
    def memory_exponent(self) -> float | None:
        known = [(size, cost) for size, cost in zip(self.sizes, self.bytes, strict=True) if cost]
        return exponent(*zip(*known, strict=True)) if known else None


def curves(rows: list[dict], sweep: str) -> dict[str, Curve]:
    """Return the curve of each provider, and type where there are several, from the rows of a sweep that were timed."""
    timed = sorted((row for row in rows if row["sweep"] == sweep and "both" in row), key=lambda row: row["size"])
    several = len({row["dtype"] for row in timed}) > 1
    found = {}
    for row in timed:
        name = f"{row['provider']}, {row['dtype']}" if several else row["provider"]
        curve = found.setdefault(name, Curve([], [], [], []))
        curve.sizes.append(row["size"])
        curve.milliseconds.append(row["both"]["median_ms"])
        curve.bytes.append(row.get("peak_bytes"))
        curve.floor_ms.append(row["floor_ms"]["both"])
    return found


def exponents(found: dict[str, Curve], form: str, points: bool = False) -> str:
    """Return a table of the fitted exponents, with the times that they were fitted to if `points`."""
    rows = []
    for provider, curve in found.items():
        row = {
            "provider": provider,
            "exponent of time": number(curve.time_exponent, ".2f"),
            "exponent of memory": number(curve.memory_exponent, ".2f"),
        }
        if points:
            times = zip(curve.sizes, curve.milliseconds, strict=True)
            row["times"] = ", ".join(f"{size}: {ms:.3g} ms" for size, ms in times)
        rows.append(row)
    return tabulated(rows, form)


def as_text(name: str, sweep: Sweep, rows: list[dict]) -> str:
    """Return a sweep for a terminal."""
    cost = f"forward + backward; cost ~ ({sweep.quantity})^exponent"
    title = f"\nsweep {name}: {sweep.about}, {rows[0]['dtype']}, {cost}"
    return f"{title}\n{exponents(curves(rows, name), TERMINAL, points=True)}"
