"""The tables of results: the same columns on a terminal and on the page."""

from collections.abc import Callable

from tabulate import tabulate

from .families.base import PASSES
from .providers import BACKENDS

#: How tabulate writes a table on a terminal, and on the page.
TERMINAL, PAGE = "simple", "pipe"

HOW_TO_READ = """\
- Every answer was checked against the oracle in float64 on the same inputs first. "WRONG" means that it was off by more than
  1e-4 in float32 or 1e-2 (gradient 2e-2) in half precision; it was not timed. The gradient of token relations jumps where a
  difference passes 0 or the margin, and rounding puts a few of the pairs on the other side: there 1e-2 is allowed.
- Times are medians of interleaved runs, with quartiles. Ratios are with the fastest right answer that is not this library's, in the
  same run of the same process.
- Memory is the peak beyond inputs, output and gradients. "call" is the cost of forward and backward on inputs so small that only
  the overhead is left. "first" is the first call, on the wall, compilation from empty caches included. "gradient error" is that
  of the worst gradient.
- "of floor" compares with `max(FLOP / GEMM ceiling, bytes / copy ceiling)`: FLOP of the products, bytes of the inputs read once
  and the outputs written once per pass, ceilings measured on the same machine. 100 % is as fast as it could do it at all.
"""


def tabulated(rows: list[dict[str, str]], form: str, left: int = 1) -> str:
    """Return rows, whose keys are the columns, as a table: so many columns to the left, the others to the right."""
    align = [("left" if column < left else "right") for column in range(len(rows[0]))]
    return tabulate(rows, headers="keys", tablefmt=form, disable_numparse=True, colalign=align)


def columns(against: dict | None) -> dict[str, Callable[[dict], str]]:
    """Return the columns of a case by their titles; ratios are with the row `against`."""
    return {
        "provider": lambda row: row["provider"],
        **{part: lambda row, part=part: _median(row, part) for part in PASSES},
        "quartiles": lambda row: quartiles(row["both"]) if "both" in row else "",
        f"vs {against['provider']}" if against else "ratio": lambda row: number(ratio(row, against), ".2f", "x"),
        "memory": lambda row: mebibytes(row.get("peak_bytes")),
        "call": lambda row: number(row.get("overhead_us"), ".0f", " us"),
        "first": lambda row: number(row.get("first_call_s"), ".1f", " s"),
        "error": lambda row: number(row["output_error"], ".0e"),
        "gradient error": lambda row: number(row["gradient_error"], ".0e"),
        "of floor": lambda row: number(of_floor(row), ".1f", " %"),
    }


def of_case(rows: list[dict], form: str) -> str:
    """Return the table of a case; below it, what failed and which providers are absent."""
    titles = columns(baseline(rows))
    cells = [
        {title: cell(row) for title, cell in titles.items()} for row in rows if row["status"] in ("right", "wrong")
    ]
    if form == PAGE:
        for row in cells:
            row["provider"] = f"**{row['provider']}**" if row["provider"] in BACKENDS else row["provider"]
    parts = [tabulated(cells, form)] if cells else []
    for title, status in (("FAILED", "failed"), ("Not here", "absent")):
        named = [f"{row['provider']} ({row['why']})" for row in rows if row["status"] == status]
        if named:
            parts.append(f"{title}: {'; '.join(named)}.")
    return ("\n\n" if form == PAGE else "\n").join(parts)


def of_step(row: dict, form: str) -> str:
    """Return what a row of training steps says: sentences around a table."""
    model = f"{row['parameters'] / 1e6:.0f} M parameters, {row['tokens']} video tokens"
    share = 100 * row["counted_loss_flop"] / row["counted_step_flop"]
    return (
        f"A training step of {row['model']}: {model}, {milliseconds(row['plain']['step_ms'])} without "
        "alignment. With LGF-KL from cached teacher logits it takes, and needs beyond model, optimiser and inputs:\n\n"
        f"{tabulated([_step_cells(name, it) for name, it in (('none', row['plain']), *row['losses'].items())], form)}\n\n"
        f"Counted, a step of {row['counted']} is {row['counted_step_flop'] / 1e12:.0f} TFLOP and the loss "
        f"{row['counted_loss_flop'] / 1e9:.1f} GFLOP, {share:.4f} %."
    )


def _step_cells(name: str, it: dict) -> dict[str, str]:
    alone = it.get("loss_ms")
    return {
        "loss": name,
        "step": milliseconds(it["step_ms"]),
        "memory": mebibytes(it["peak_bytes"]),
        "the loss alone": "" if alone is None else milliseconds(alone),
        "of the step": "" if alone is None else number(100 * alone / it["step_ms"], ".1f", " %"),
    }


def as_text(name: str, about: str, rows: list[dict]) -> str:
    """Return a case for a terminal."""
    floor = ", ".join(f"{part} {milliseconds(value)}" for part, value in rows[0]["floor_ms"].items())
    return f"\n{name}: {about}\n{described(rows[0])}, {rows[0]['dtype']}\nfloor: {floor}\n{of_case(rows, TERMINAL)}"


def described(row: dict) -> str:
    """Return the operator of a row, its tensors and its options."""
    tensors = [f"{name} {_shapes(shape)}" for name, shape in row["tensors"].items()]
    return ", ".join([row["operator"], *tensors, *(f"{name} {value}" for name, value in row["options"].items())])


def _shapes(shape: list) -> str:
    """Return a shape as "1 x 2 x 3"; shapes of a list with "and" between them."""
    if shape and isinstance(shape[0], list):
        return " and ".join(map(_shapes, shape))
    return " x ".join(map(str, shape))


def baseline(rows: list[dict]) -> dict | None:
    """Return what the others are compared with: the fastest right answer that is not this library's."""
    others = [row for row in rows if row["status"] == "right" and row["provider"] not in BACKENDS]
    return min(others, key=lambda row: row["both"]["median_ms"], default=None)


def ratio(row: dict, to: dict | None) -> float | None:
    """Return how many times faster than the baseline, of the same run; None for anything that was not timed."""
    if to is None or "both" not in row or row["run"] != to["run"]:
        return None
    return to["both"]["median_ms"] / row["both"]["median_ms"]


def of_floor(row: dict) -> float | None:
    """Return per cent: 100 is as fast as the machine's own ceilings allow; None for anything that was not timed."""
    return 100 * row["floor_ms"]["both"] / row["both"]["median_ms"] if "both" in row else None


def _median(row: dict, part: str) -> str:
    if part in row:
        return milliseconds(row[part]["median_ms"])
    return "WRONG, not timed" if part == "both" else ""


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value >= 10 else f"{value:.3g} ms"


def quartiles(spread: dict) -> str:
    """Return both in milliseconds, to as many digits as the times themselves."""
    return " .. ".join(milliseconds(spread[key]).removesuffix(" ms") for key in ("low_ms", "high_ms"))


def mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
