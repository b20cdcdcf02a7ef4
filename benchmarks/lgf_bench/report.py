"""docs/performance.md, from the recorded results and nothing else: the same results give the same page, letter by letter."""

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from . import ceilings, plots, results, sweeps
from .cases import CASES
from .counting import PASSES
from .errors import UserError
from .providers import BACKENDS
from .step import STEP
from .step import as_text as step_as_text
from .table import baseline, mebibytes, milliseconds, number, of_floor, quartiles, ratio

PAGE = results.ROOT / "docs" / "performance.md"
PICTURES = "performance"

#: What the times of a row are, by the clock that measured them.
CLOCKS = {
    "wall": "time on the wall",
    "cpu": "CPU time (the machine was busy with other things)",
    "events": "time of the device",
}

OPENING = """\
# Performance

Written by `lgf bench report` from the files in [benchmarks/results](../benchmarks/results) and from nothing else. How to read it:

- Every answer was checked against the oracle in float64 on the same inputs first. "WRONG" means that it was off by more than
  1e-4 in float32 or 1e-2 (gradient 2e-2) in half precision; it was not timed. The gradient of token relations jumps where a
  difference passes 0 or the margin, and rounding puts a few of the pairs on the other side: there 1e-2 is allowed.
- Times are medians of interleaved runs, with quartiles. Ratios are with the fastest right answer that is not this library's, in the
  same run of the same process.
- Memory is the peak beyond inputs, output and gradient. "call" is the cost of forward and backward on inputs so small that only
  the overhead is left. "first" is the first call, on the wall, compilation from empty caches included.
- "of floor" compares with `max(FLOP / GEMM ceiling, bytes / copy ceiling)`: FLOP of the products, bytes of the inputs read once
  and the outputs written once per pass, ceilings measured on the same machine. 100 % is as fast as it could do it at all.
"""


def run(arguments: argparse.Namespace) -> None:
    """Write the page and its pictures, of benchmarks/results or of the folder that --out names."""
    folder = arguments.out or results.RESULTS
    if not device_folders(folder):
        raise UserError(f"there are no results in {folder}: make some with `lgf bench --out {folder}` first.")
    page_file = PAGE if arguments.out is None else folder / "performance.md"
    pictures = page_file.parent / PICTURES
    for device in device_folders(folder):
        for name, title, curves in swept(device):
            plots.draw(pictures / picture_name(device, name), title, sweeps.sweeps("cpu")[name].quantity, curves)
    results.write(page_file, page(folder))
    print(f"{page_file} written, with its pictures in {pictures}")


def device_folders(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.rglob(results.LOSSES) if results.read(file))


def page(folder: Path) -> str:
    """The whole page."""
    return "\n".join([OPENING, *(part for device in device_folders(folder) for part in _of_device(device))])


def _of_device(device: Path) -> Iterator[str]:
    rows = _rows(device, results.LOSSES)
    yield f"## {rows[0]['device']}\n"
    if ceiling := ceilings.read(device):
        yield f"Measured ceilings: {ceilings.as_text(ceiling)}.\n"
    if steps := {row["config"]: row for row in results.read(device / STEP)}:
        yield "### How much of a training step that is\n"
        for row in steps.values():
            yield f"{step_as_text(row)} `{row['command']}`, commit {row['commit']}.\n"
    order = list(CASES)
    rows.sort(key=lambda row: order.index(row["case"]) if row["case"] in order else len(order))
    for (name, dtype), of_case in groupby(rows, key=lambda row: (row["case"], row["dtype"])):
        yield from _table(name, dtype, list(of_case))
    if pictures := list(swept(device)):
        yield "### Cost as work grows\n"
    for name, title, curves in pictures:
        yield f"![{title}: time and memory against {name}]({PICTURES}/{picture_name(device, name)})\n"
        yield "| provider | exponent of time | exponent of memory |\n|---|---|---|"
        for provider, curve in curves.items():
            yield f"| {provider} | {number(curve.time_exponent, '.2f')} | {number(curve.memory_exponent, '.2f')} |"
        yield ""


def _table(name: str, dtype: str, rows: list[dict]) -> Iterator[str]:
    row, against = rows[0], baseline(rows)
    shape = " x ".join(map(str, row["shape"]))
    yield f"### {name}, {dtype}\n"
    option = "" if row["operator"] == "token_relation" else f", window {row['window']}"
    yield (
        f"`{row['operator']}`, student {shape}{option}; floor {milliseconds(row['floor_ms']['both'])}. Threads: {row['threads']}, "
        f"{CLOCKS[row['clock']]}, torch {row['torch']}, commit {row['commit']}, `{row['command']}`.\n"
    )
    title = f"vs {against['provider']}" if against else "ratio"
    columns = (
        "provider",
        *PASSES,
        "quartiles",
        title,
        "memory",
        "call",
        "first",
        "error",
        "gradient error",
        "of floor",
    )
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    yield from (_line(row, against) for row in rows if row["status"] != "absent")
    absent = [f"{row['provider']} ({row['why']})" for row in rows if row["status"] == "absent"]
    yield f"\nNot here: {'; '.join(absent)}.\n" if absent else ""


def _line(row: dict, against: dict | None) -> str:
    if row["status"] == "failed":
        return f"| {row['provider']} | failed: {row['why']} {'|' * 11}"
    errors = f"{number(row['output_error'], '.0e')} | {number(row['gradient_error'], '.0e')}"
    if row["status"] == "wrong":
        return f"| {row['provider']} | WRONG, not timed {'|' * 8} {errors} | |"
    both, faster = row["both"], ratio(row, against)
    name = f"**{row['provider']}**" if row["provider"] in BACKENDS else row["provider"]
    cells = [
        name,
        milliseconds(row["forward"]["median_ms"]),
        milliseconds(row["backward"]["median_ms"]),
        milliseconds(both["median_ms"]),
        quartiles(both),
        number(faster, ".2f", "x"),
        mebibytes(row.get("peak_bytes")),
        number(row.get("overhead_us"), ".0f", " us"),
        number(row.get("first_call_s"), ".1f", " s"),
        errors,
        f"{of_floor(row):.1f} %",
    ]
    return f"| {' | '.join(cells)} |"


def swept(device: Path) -> Iterator[tuple[str, str, dict[str, sweeps.Curve]]]:
    """Name, title and curves of each sweep that a device has results of."""
    rows = _rows(device, results.SWEEPS)
    for name, sweep in sweeps.sweeps("cpu").items():
        if curves := sweeps.curves(rows, name):
            yield name, sweep.about, curves


def _rows(device: Path, file: str) -> list[dict]:
    return ceilings.with_floors(results.latest(results.read(device / file)), device)


def picture_name(device: Path, sweep: str) -> str:
    return f"{device.name}-{sweep}.png"
