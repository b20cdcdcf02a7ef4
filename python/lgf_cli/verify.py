"""Check every backend of every operator on this machine against plain PyTorch, and time it.

Each is run forward and backward on small inputs with several options and types. A GPU compiles its kernels for that, which
takes minutes the first time, and less with --jobs. The exit code is 1 if any answer is wrong. For a bug report add the output
of `lgf doctor`.

  lgf verify                   the GPU if there is one, else the CPU
  lgf verify --device cpu
  lgf verify --json            for programs: one line a check

Training checks for itself: kernels on a GPU are chosen only where they have answered right, once for each kind of call
(LGF_VERIFY=off chooses them unchecked, LGF_VERIFY=force checks anew in each process).
"""

import argparse
import json
import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from .errors import UserError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="lgf verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda if there is one, else cpu"
    )
    result.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="compile in N processes first, each of which takes 1 GiB of the GPU",
    )
    result.add_argument("--json", action="store_true", help="print a JSON object for each check instead of a table")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from lgf_kernels import verification  # imports torch, which help does not need

    device = checked_device(options.device)
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}.")
    checks = verification.checks(device)
    if options.jobs > 1:
        compile_ahead(verification.run, checks, options.jobs)
    rows = []
    for number, check in enumerate(checks, 1):
        if not options.json and sys.stderr.isatty():
            print(
                f"\r{number}/{len(checks)} {check.call.operator} {check.backend}\033[K",
                end="",
                file=sys.stderr,
                flush=True,
            )
        rows.append(verification.run(check))
        print(json.dumps(rows[-1]._asdict()) if options.json else as_line(rows[-1]), flush=True)
    if not options.json:
        print(summary(rows, device))
    return int(not all(row.right for row in rows))


def compile_ahead(run: Callable, checks: list, jobs: int) -> None:
    """Make all checks once in several processes, for what they leave in the compiler's cache: their times disturb each other.

    A check that crashes its process does so again, and is seen, when all are made in order.
    """
    context = multiprocessing.get_context("spawn")
    with suppress(BrokenProcessPool), ProcessPoolExecutor(jobs, mp_context=context) as pool:
        list(pool.map(run, checks))


def checked_device(given: str | None) -> str:
    """Return the device that --device names, or the one to take without it. torch must see the device here."""
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", given):
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {given!r}.")
    kind, _, index = given.partition(":")
    if kind == "cuda" and int(index or 0) >= (count := torch.cuda.device_count()):
        seen = f"{count} CUDA devices, counted from 0" if count else "no CUDA device here"
        raise UserError(f"--device {given}: torch sees {seen}; `lgf doctor` says more.")
    return given


def as_line(row) -> str:
    time = f"{row.milliseconds:.3g} ms" if row.right else ""
    found = row.found if row.right else f"WRONG: {row.found}"
    return f"{row.operator:<20}{row.backend:<10}{row.dtype:<10}{time:>9}  {found:<22}{row.options}"


def summary(rows: list, device: str) -> str:
    if not rows:
        return f"Nothing to check: no backend but plain PyTorch runs on {device}; `lgf doctor` says why."
    wrong = sum(not row.right for row in rows)
    return f"{len(rows)} checks on {device}: " + (f"{wrong} WRONG" if wrong else "all right")
