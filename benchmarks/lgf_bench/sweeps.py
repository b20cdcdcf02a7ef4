"""Cost as work grows: one quantity varies, the rest stays, and the exponent is fitted.

On a double logarithmic scale cost = a * size^b is a line; b is its slope by least squares. Small sizes, where the overhead of
a call counts, pull b down: the sizes begin where it does not.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from .cases import Case


class Sweep(NamedTuple):
    """Cases by the size that varies, which is called `quantity`."""

    quantity: str
    about: str
    cases: dict[int, Case]


#: Who is swept unless others are asked for: compiling anew for every size would take hours.
PROVIDERS = ("eager", "native", "triton", "portable")


def sweeps(device: str) -> dict[str, Sweep]:
    """Name -> sweep. A GPU gets larger sizes: it is done with those of a CPU before it is started."""
    gpu = device != "cpu"
    T, H, W, C = (13, 30, 45, 256) if gpu else (5, 24, 32, 64)
    frames, N, D = (24, 150, 256) if gpu else (8, 100, 64)

    def lgf(T: int = T, H: int = H, W: int = W, C: int = C, window: int = 7) -> Case:
        return Case("lgf_kl", (1, T, H, W, C), (C, C), "", window=window, device=device)

    def relation(N: int) -> Case:
        return Case("token_relation", (1, frames, N, D), (D,), "", device=device)

    return {
        "pairs": Sweep("T - 1", "LGF-KL, pairs of frames", {n: lgf(T=n + 1) for n in (2, 4, 8, 16, 32)}),
        "tokens": Sweep(
            "H * W", "LGF-KL, tokens of a frame", {H * W * s * s: lgf(H=H * s, W=W * s) for s in (1, 2, 3, 4)}
        ),
        "channels": Sweep("C", "LGF-KL, channels", {c: lgf(C=c) for c in (64, 128, 256, 512, 1024)}),
        "window": Sweep("K", "LGF-KL, side of the window", {k: lgf(window=k) for k in range(3, 16, 2)}),
        "relations": Sweep(
            "n", "MoAlign, tokens of a video", {frames * N * s: relation(N * s) for s in (1, 2, 3, 4, 6)}
        ),
    }  # fmt: skip


def case_name(sweep: str, size: int) -> str:
    return f"sweep-{sweep}-{size}"


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The slope of log cost over log size; None with fewer than two sizes or a cost that is not positive."""
    if len(set(sizes)) < 2 or min(costs) <= 0:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


class Curve(NamedTuple):
    """One provider's costs in a sweep, by size."""

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
    """Provider, with the type where there are several -> curve, from the rows of a sweep that were timed."""
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


def as_text(name: str, sweep: Sweep, rows: list[dict]) -> str:
    lines = [
        f"\nsweep {name}: {sweep.about}, {rows[0]['dtype']}, forward + backward; cost ~ ({sweep.quantity})^exponent"
    ]
    for provider, curve in curves(rows, name).items():
        points = ", ".join(f"{size}: {ms:.3g} ms" for size, ms in zip(curve.sizes, curve.milliseconds, strict=True))
        lines.append(
            f"  {provider:<10} time exponent {_fitted(curve.time_exponent)}, memory {_fitted(curve.memory_exponent)}   {points}"
        )
    return "\n".join(lines)


def _fitted(exponent: float | None) -> str:
    return "  -  " if exponent is None else f"{exponent:5.2f}"
