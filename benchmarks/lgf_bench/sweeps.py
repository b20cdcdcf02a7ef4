"""Cost as work grows: one quantity varies, the rest stays, and the exponent is fitted.

On a double logarithmic scale cost = a * size^b is a line; b is its slope by least squares. Small sizes, where the overhead of
a call counts, pull b down: the sizes begin where it does not.
"""

import math
import statistics
from collections.abc import Sequence

from .families.base import Sweep
from .table import TERMINAL, number, tabulated

#: Providers that are swept unless others are asked for: compiling anew for every size would take hours.
PROVIDERS = ("eager", "native", "triton", "portable")


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the slope of log cost over log size; None with fewer than two sizes or a cost that is not positive."""
    if len({size for size, _ in points}) < 2 or min(cost for _, cost in points) <= 0:
        return None
    return statistics.linear_regression(
        *zip(*((math.log(size), math.log(cost)) for size, cost in points), strict=True)
    ).slope


def curves(rows: list[dict], sweep: str) -> dict[str, list[dict]]:
    """Return the rows of a sweep that were timed, by provider, and type where there are several, in order of size."""
    timed = sorted((row for row in rows if row["sweep"] == sweep and "both" in row), key=lambda row: row["size"])
    several = len({row["dtype"] for row in timed}) > 1
    found = {}
    for row in timed:
        found.setdefault(f"{row['provider']}, {row['dtype']}" if several else row["provider"], []).append(row)
    return found


def milliseconds(curve: list[dict]) -> list[tuple[int, float]]:
    """Return (size, time) of a curve."""
    return [(row["size"], row["both"]["median_ms"]) for row in curve]


def peaks(curve: list[dict]) -> list[tuple[int, int]]:
    """Return (size, bytes) of a curve where memory was measured and the system tells."""
    return [(row["size"], row["peak_bytes"]) for row in curve if row.get("peak_bytes")]


def exponents(found: dict[str, list[dict]], form: str, points: bool = False) -> str:
    """Return a table of the fitted exponents, with the times that they were fitted to if `points`."""
    rows = []
    for provider, curve in found.items():
        row = {
            "provider": provider,
            "exponent of time": number(exponent(milliseconds(curve)), ".2f"),
            "exponent of memory": number(exponent(peaks(curve)), ".2f"),
        }
        if points:
            row["times"] = ", ".join(f"{size}: {ms:.3g} ms" for size, ms in milliseconds(curve))
        rows.append(row)
    return tabulated(rows, form)


def as_text(name: str, sweep: Sweep, rows: list[dict]) -> str:
    """Return a sweep for a terminal."""
    cost = f"forward + backward; cost ~ ({sweep.quantity})^exponent"
    title = f"\nsweep {name}: {sweep.about}, {rows[0]['dtype']}, {cost}"
    return f"{title}\n{exponents(curves(rows, name), TERMINAL, points=True)}"
