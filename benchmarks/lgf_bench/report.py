"""The page docs/performance.md, a function of the stored results alone."""

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from lgf_cli.errors import UserError

from . import ceilings, families, plots, results, sweeps
from .families import CASES
from .families.base import Sweep
from .table import HOW_TO_READ, PAGE, described, milliseconds, of_case, of_step

PAGE_FILE = results.ROOT / "docs" / "performance.md"
PICTURES = "performance"

#: The kind of time of a row, by the clock that measured it.
CLOCKS = {
    "wall": "time on the wall",
    "cpu": "CPU time (the machine was busy with other things)",
    "events": "time of the device",
}

OPENING = """\
# Performance

Written by `lgf bench report` from the files in [benchmarks/results](../benchmarks/results) and from nothing else. How to read it:

"""


def run(arguments: argparse.Namespace) -> None:
    """Write the page and its pictures from benchmarks/results, or from the folder that --out names."""
    folder = arguments.out or results.RESULTS
    if not device_folders(folder):
        raise UserError(f"there are no results in {folder}: make some with `lgf bench --out {folder}` first.")
    page_file = PAGE_FILE if arguments.out is None else folder / "performance.md"
    for device in device_folders(folder):
        for picture, sweep, curves in swept(device):
            plots.draw(page_file.parent / picture, sweep.about, sweep.quantity, curves)
    results.write(page_file, page(folder))
    print(f"{page_file} written, with its pictures in {page_file.parent / PICTURES}")


def device_folders(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.rglob(results.LOSSES) if results.read(file))


def page(folder: Path) -> str:
    """Return the whole page."""
    return "\n".join(
        [OPENING + HOW_TO_READ, *(part for device in device_folders(folder) for part in _of_device(device))]
    )


def _of_device(device: Path) -> Iterator[str]:
    rows = _rows(device, results.LOSSES)
    yield f"## {rows[0]['device']}\n"
    if ceiling := results.read_ceilings(device):
        yield f"Measured ceilings: {ceilings.as_text(ceiling)}.\n"
    if steps := {row["model"]: row for row in results.read(device / results.STEP)}:
        yield "### How much of a training step that is\n"
        for row in steps.values():
            yield f"{of_step(row, PAGE)} `{row['command']}`, commit {row['commit']}.\n"
    order = list(CASES)
    rows.sort(key=lambda row: order.index(row["case"]) if row["case"] in order else len(order))
    for (name, dtype), rows_of_case in groupby(rows, key=lambda row: (row["case"], row["dtype"])):
        yield _of_case(name, dtype, list(rows_of_case))
    for number, (picture, sweep, curves) in enumerate(swept(device)):
        if not number:
            yield "### Cost as work grows\n"
        yield f"![{sweep.about}: time and memory against {sweep.quantity}]({picture})\n"
        yield f"{sweeps.exponents(curves, PAGE)}\n"


def _of_case(name: str, dtype: str, rows: list[dict]) -> str:
    row = rows[0]
    return (
        f"### {name}, {dtype}\n\n"
        f"{described(row)}; floor {milliseconds(row['floor_ms']['both'])}. Threads: {row['threads']}, "
        f"{_native_kernels(row)}"
        f"{CLOCKS[row['clock']]}, torch {row['torch']}, commit {row['commit']}, `{row['command']}`.\n\n"
        f"{of_case(rows, PAGE)}\n"
    )


def _native_kernels(row: dict) -> str:
    """Say which instruction set the native kernels had, where the row knows."""
    return f"native kernels for {row['isa']}, " if row.get("isa") else ""


def swept(device: Path) -> Iterator[tuple[Path, Sweep, dict[str, list[dict]]]]:
    """Yield the picture's file, the sweep and its curves, for each sweep that a device has results of."""
    rows = _rows(device, results.SWEEPS)
    for name, sweep in families.sweeps(gpu=False).items():
        if curves := sweeps.curves(rows, name):
            yield Path(PICTURES, f"{device.name}-{name}.png"), sweep, curves


def _rows(device: Path, file: str) -> list[dict]:
    return ceilings.with_floors(results.latest(results.read(device / file)), device)
