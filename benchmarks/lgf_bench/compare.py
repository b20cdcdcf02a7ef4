"""Comparison of two folders or files of results, B against A.

They come from two runs, whose ratios hold the drift of the machine too: two runs of the same code differ by more than the
spread within either. `benchmarks/tools/compare_commits.py` measures two commits in turns, and only that gives a verdict.
"""

from collections.abc import Callable
from pathlib import Path

from lgf_cli.errors import UserError

from . import results
from .table import TERMINAL, milliseconds, number, tabulated

WITHIN = "within the spread"


def compare(a: str, b: str) -> None:
    """Print B against A."""
    for place in (a, b):
        if not Path(place).exists():
            raise UserError(
                f"--compare takes two folders or files of results, and {place!r} is none. Commits are compared in a "
                "checkout of the repository: python benchmarks/tools/compare_commits.py A B"
            )
    rows_a, rows_b = load(Path(a)), load(Path(b))
    print(as_text(a, b, rows_a, rows_b, "two runs: a ratio holds the drift of the machine too", spread_of_two_runs))


def load(place: Path) -> dict[tuple, dict]:
    """Return the latest row of each case, type and provider, of a file or of all in a folder.

    A folder of results may hold other rows too, for example those of `lgf demo --losses`, which have no case.
    """
    files = [place] if place.is_file() else sorted(place.rglob("*.jsonl"))
    rows = [row for file in files for row in results.read(file) if {"case", "provider"} <= row.keys()]
    if not rows:
        raise UserError(f"there are no results in {place}.")
    return {key_of(row): row for row in results.latest(rows) if row["status"] != "absent"}


def key_of(row: dict) -> tuple:
    return row["case"], row["dtype"], row["provider"]


def as_text(a: str, b: str, rows_a: dict, rows_b: dict, note: str, judge: Callable[[dict, dict], str]) -> str:
    """Return what both have, with what `judge` says of the times, and what only one has."""
    lines = [f"B = {b} against A = {a}; {note}"]
    if both := [_cells(key, row, rows_b[key], judge) for key, row in rows_a.items() if key in rows_b]:
        lines.append(tabulated(both, TERMINAL, left=3))
    for name, rows, others in (("A", rows_a, rows_b), ("B", rows_b, rows_a)):
        if only := [" ".join(key) for key in rows if key not in others]:
            lines.append(f"only in {name}: {', '.join(only)}")
    devices = {row["device"] for row in (*rows_a.values(), *rows_b.values())}
    if len(devices) > 1:
        lines.append(f"A and B are of different devices: {', '.join(sorted(devices))}")
    return "\n".join(lines)


def _cells(key: tuple, a: dict, b: dict, judge: Callable[[dict, dict], str]) -> dict[str, str]:
    cells = dict(zip(("case", "type", "provider"), key, strict=True))
    if {a["status"], b["status"]} != {"right"}:
        return cells | {"A": a["status"], "B": b["status"], "A / B": "no ratio", "": "an answer is missing or off"}
    (a, b), ratio = (a["both"], b["both"]), a["both"]["median_ms"] / b["both"]["median_ms"]
    times = {"A": milliseconds(a["median_ms"]), "B": milliseconds(b["median_ms"])}
    return cells | times | {"A / B": number(ratio, ".2f", "x"), "": judge(a, b)}


def verdict(a: dict, b: dict) -> str:
    """Return what may be claimed: nothing, as long as the quartiles of the two overlap."""
    if b["high_ms"] < a["low_ms"]:
        return "faster"
    return "slower" if b["low_ms"] > a["high_ms"] else WITHIN


def spread_of_two_runs(a: dict, b: dict) -> str:
    """Return the same without a claim: what lies beyond the spread of either run may be the machine's doing."""
    return WITHIN if verdict(a, b) == WITHIN else "beyond the spread"
