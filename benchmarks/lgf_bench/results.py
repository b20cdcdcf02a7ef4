"""Stored results: a folder for each device, of JSON lines, each with all that is needed to reproduce it."""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from lgf_cli.errors import UserError

from lgf_kernels import __version__
from lgf_kernels.core import native
from lgf_kernels.core.files import write_whole
from lgf_kernels.core.verify import driver, triton_version
from lgf_kernels.doctor import cpu_name

from .checkout import ROOT, commit

RESULTS = ROOT / "benchmarks" / "results"
#: In a folder of results: rows of cases, of sweeps, of training steps and of the tuner, and what the machine can do at best.
LOSSES, SWEEPS, STEP, TUNE = "losses.jsonl", "sweeps.jsonl", "step.jsonl", "tune.jsonl"
CEILINGS = "ceilings.json"
#: One run is one process: only times of the same run may be divided by each other.
RUN = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"


def device_name(device: str) -> str:
    return cpu_name() if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device)


def instruction_set(device: str) -> str | None:
    """Return the instruction set whose native kernels run on a CPU; None on a GPU and without these kernels."""
    module, _ = native.load("cpu")
    return module.build_info()["isa"] if module and torch.device(device).type == "cpu" else None


def device_folder(device: str) -> Path:
    """Return where the results of this machine's device belong in a checkout: benchmarks/results/<device>.

    Those of a lesser instruction set than the CPU has (LGF_CPU_ISA) are a device's of their own.
    """
    name = device_name(device)
    if torch.device(device).type == "cpu":
        name = f"cpu {name} {os.cpu_count()} cores"
        isa = instruction_set(device)
        if isa and isa != native.load("cpu")[0].isas()[0]:
            name = f"{name} {isa}"
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return RESULTS / "-".join(words)


def provenance(device: str) -> dict:
    """Return where and from what the numbers come."""
    cuda = torch.device(device).type == "cuda"
    version = re.search(r"\d+(\.\d+)+", driver()) if cuda else None
    return {
        "device": device_name(device),
        "driver": version and version[0],
        "threads": torch.get_num_threads(),
        "isa": instruction_set(device),
        "lgf_kernels": __version__,
        "torch": torch.__version__,
        "triton": triton_version() or None,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "commit": commit(),
        "run": RUN,
        "command": shlex.join(["lgf", *sys.argv[1:]]),
    }


def append(file: Path, rows: Iterable[dict]) -> None:
    """Add rows at once, on disk before this returns. What a killed run has half written stays a line of its own."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with _written(file), open(file, "a+b") as lines:
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            text = "\n" * (lines.read() != b"\n") + text
        lines.write(text.encode())
        lines.flush()
        os.fsync(lines.fileno())


def read(file: Path) -> list[dict]:
    """Return the rows of a file, none if there is none; a line that is no row, as a killed run leaves, is skipped."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [_upgraded(row) for row in rows if isinstance(row, dict)]


def _upgraded(row: dict) -> dict:
    """Return a row with names of its tensors, if it is from before they had any; other rows as they are, whatever has a shape."""
    if not {"case", "shape", "teacher_channels", "window"} <= row.keys():
        return row
    kept = {key: value for key, value in row.items() if key not in ("shape", "teacher_channels", "window")}
    student, window = row["shape"], row["window"]
    teachers = [[*student[:-1], channels] for channels in row["teacher_channels"]]
    if row["case"].endswith("-cached"):
        teachers = [[student[0], student[1] - 1, *student[2:4], window**2] for _ in teachers]
    tensors = {"student": student} | ({"teachers": teachers} if teachers else {})
    return kept | {"tensors": tensors, "options": {"window": window} if len(student) == 5 else {}}


def latest(rows: list[dict]) -> list[dict]:
    """Return of each case and type the rows of the last run that has it: what is compared comes from one run."""
    last = {(row["case"], row["dtype"]): row["run"] for row in rows}
    return [row for row in rows if last[row["case"], row["dtype"]] == row["run"]]


def write(file: Path, text: str) -> None:
    """Replace a file as a whole, so that a killed run leaves the old one or the new one."""
    with _written(file):
        write_whole(file, text.encode())


def read_ceilings(folder: Path) -> dict:
    """Return the ceilings of a folder; empty if there are none."""
    try:
        return json.loads((folder / CEILINGS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_ceilings(folder: Path, ceilings: dict) -> None:
    write(folder / CEILINGS, json.dumps(ceilings, indent=2) + "\n")


@contextmanager
def _written(file: Path) -> Iterator[None]:
    """Make the folder, and name the file that cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}. Name another folder, or mend this one."
        ) from error
