"""The rows of a case for a terminal."""

from .cases import Case
from .counting import PASSES
from .providers import BACKENDS


def baseline(rows: list[dict]) -> dict | None:
    """What the others are compared with: the fastest right answer that is not this library's."""
    others = [row for row in rows if row["status"] == "right" and row["provider"] not in BACKENDS]
    return min(others, key=lambda row: row["both"]["median_ms"], default=None)


def ratio(row: dict, to: dict | None) -> float | None:
    """How many times faster than the baseline, of the same run; None for anything that was not timed."""
    if to is None or "both" not in row or row["run"] != to["run"]:
        return None
    return to["both"]["median_ms"] / row["both"]["median_ms"]


def of_floor(row: dict, part: str = "both") -> float:
    """Per cent: 100 is as fast as the machine's own ceilings allow."""
    return 100 * row["floor_ms"][part] / row[part]["median_ms"]


def as_text(name: str, case: Case, rows: list[dict]) -> str:
    against = baseline(rows)
    title = f"vs {against['provider']}" if against else "ratio"
    floor = rows[0]["floor_ms"]
    option = case.form if case.operator == "token_relation" else f"window {case.window}"
    lines = [
        f"\n{name}: {case.about}",
        f"{case.operator}, student {case.shape}, teachers {case.teacher_channels}, {option}, {case.dtype}",
        f"floor: {', '.join(f'{part} {milliseconds(floor[part])}' for part in PASSES)}",
        f"  {'provider':<14}{'forward':>10}{'backward':>10}{'both [quartiles]':>32}{title:>11}{'memory':>12}"
        f"{'call':>9}{'first':>8}{'error':>7}{'grad':>7}{'of floor':>10}",
    ]
    lines += [_line(row, against) for row in rows if row["status"] != "absent"]
    lines += [f"  not here: {row['provider']} ({row['why']})" for row in rows if row["status"] == "absent"]
    return "\n".join(lines)


def _line(row: dict, against: dict | None) -> str:
    start = f"  {row['provider']:<14}"
    if row["status"] == "failed":
        return f"{start}FAILED: {row['why']}"
    errors = "".join(f"{number(row[key], '.0e'):>7}" for key in ("output_error", "gradient_error"))
    if row["status"] == "wrong":
        return f"{start}{'WRONG ANSWER, not timed':>52}{'':>40}{errors}"
    both = row["both"]
    times = f"{milliseconds(both['median_ms'])} [{quartiles(both)}]"
    faster = ratio(row, against)
    return (
        f"{start}{milliseconds(row['forward']['median_ms']):>10}{milliseconds(row['backward']['median_ms']):>10}"
        f"{times:>32}{number(faster, '.2f', 'x'):>11}{mebibytes(row.get('peak_bytes')):>12}"
        f"{number(row.get('overhead_us'), '.0f', ' us'):>9}{number(row.get('first_call_s'), '.1f', ' s'):>8}"
        f"{errors}{of_floor(row):>8.1f} %"
    )


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value >= 10 else f"{value:.3g} ms"


def quartiles(spread: dict) -> str:
    """In milliseconds, to as many digits as the times themselves."""
    return " .. ".join(milliseconds(spread[key]).removesuffix(" ms") for key in ("low_ms", "high_ms"))


def mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
