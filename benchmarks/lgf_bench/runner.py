"""Runs of `lgf bench`: each case is measured, printed and stored, or skipped if it is stored already."""

import argparse
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from . import ceilings, families, results, sweeps, timing
from .families.base import Case
from .measure import Plan, measure_case
from .table import as_text


class Runner:
    """One run of `lgf bench`: the machine's ceilings, where numbers go, until when, and without which providers."""

    def __init__(self, arguments: argparse.Namespace, broken: dict[str, str]):
        self.arguments = arguments
        self.deadline = time.monotonic() + 60 * arguments.minutes
        ceiling = ceilings.ceilings(arguments.device, arguments.dtypes, arguments.out)
        self.plan = Plan(arguments.providers, arguments.rounds, tuple(arguments.measure), ceiling, broken)
        self.about = results.provenance(arguments.device) | {"clock": timing.clock_in_use(arguments.device)}
        self.failed = False
        print(ceilings.as_text(ceiling), flush=True)
        if isa := self.about["isa"]:
            print(f"native kernels for {isa} (LGF_CPU_ISA names others)", flush=True)

    def measured(self, cases: dict[str, Case], file: str, facts: dict[str, dict] | None = None) -> Iterator[tuple]:
        """Yield name, case and rows of each case, kept in a file of the folder of results with the facts of its name."""
        with empty_compiler_caches() if "first" in self.arguments.measure else nullcontext():
            for dtype in self.arguments.dtypes:
                for name, case in cases.items():
                    case = replace(case, dtype=dtype, device=self.arguments.device)
                    if self._is_kept(file, name, case):
                        continue
                    if time.monotonic() > self.deadline:
                        print(f"{name}, {dtype}: not begun, the time of --minutes is over")
                    elif rows := self._rows(name, case):
                        rows = [row | (facts or {}).get(name, {}) | self.about for row in rows]
                        if self.arguments.out:
                            results.append(self.arguments.out / file, rows)
                        yield name, case, rows

    def _rows(self, name: str, case: Case) -> list[dict]:
        """Return the rows of one case; none, after the reason, if it cannot be measured."""
        try:
            rows = measure_case(name, case, self.plan)
        except (RuntimeError, MemoryError) as error:
            self.failed = True
            print(f"\n{name}: FAILED: {error}", flush=True)
            return []
        if not rows:
            print(f"\n{name}: none of --providers has to do with {case.operator}")
        return rows

    def _is_kept(self, file: str, name: str, case: Case) -> bool:
        """Return whether one run of this code on this machine has measured a case with all these providers.

        A provider that was absent counts if it still is, for the same reason but for its numbers, as those of free memory.
        """
        if not self.arguments.resume:
            return False
        reasons, by_run = self.plan.reasons(case), defaultdict(set)
        wanted = {
            key: self.about[key] for key in ("commit", "lgf_kernels", "torch", "device", "threads", "isa", "clock")
        }
        wanted |= {"case": name, "dtype": case.dtype}
        for row in results.read(self.arguments.out / file):
            same = without_numbers(row.get("why")) == without_numbers(reasons.get(row["provider"]))
            if wanted.items() <= {key: row.get(key) for key in wanted}.items() and (
                row.get("status") != "absent" or same
            ):
                by_run[row["run"]].add(row["provider"])
        return any(reasons.keys() <= measured for measured in by_run.values())


def run_cases(arguments: argparse.Namespace, cases: dict[str, Case], broken: dict[str, str]) -> int:
    """Measure the cases. The exit code: 0 if every case could be measured."""
    runner = Runner(arguments, broken)
    for name, case, rows in runner.measured(cases, results.LOSSES):
        print(as_text(name, case.about, rows), flush=True)
    return int(runner.failed)


def run_sweeps(arguments: argparse.Namespace, broken: dict[str, str]) -> int:
    """Measure all sweeps, each printed when its last size is done. The exit code is that of `run_cases`."""
    arguments.measure = [metric for metric in arguments.measure if metric == "memory"]
    arguments.providers = arguments.providers or list(sweeps.PROVIDERS)
    runner = Runner(arguments, broken)
    for name, sweep in families.sweeps(gpu=arguments.device != "cpu").items():
        cases = {f"sweep-{name}-{size}": case for size, case in sweep.cases.items()}
        facts = {case: {"sweep": name, "size": size} for case, size in zip(cases, sweep.cases, strict=True)}
        rows = [row for *_, new in runner.measured(cases, results.SWEEPS, facts) for row in new]
        if arguments.out:
            rows = [row for row in results.latest(results.read(arguments.out / results.SWEEPS)) if row["sweep"] == name]
        for dtype in arguments.dtypes:
            if of_type := [row for row in rows if row["dtype"] == dtype]:
                print(sweeps.as_text(name, sweep, of_type), flush=True)
    return int(runner.failed)


def without_numbers(reason: str | None) -> str:
    return re.sub(r"[0-9.]+", "", reason or "")


@contextmanager
def empty_compiler_caches() -> Iterator[None]:
    """Put Inductor's and Triton's caches in a new folder, so that a first call compiles."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="lgf-bench-", ignore_cleanup_errors=True) as folder:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            os.environ[name] = str(Path(folder, name.lower()))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
