"""The runs of `lgf bench`: case after case is measured, shown, kept on disk, and left out where it is there already."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from . import ceilings, families, results, sweeps, timing
from .families.base import Case
from .measure import Plan, measure_case
from .providers import providers as providers_of
from .table import as_text


class Runner:
    """One run of `lgf bench`: the machine's ceilings, where numbers go, until when, and without which providers."""

    def __init__(self, arguments: argparse.Namespace, broken: dict[str, str]):
        self.arguments, self.broken = arguments, broken
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.ceiling = ceilings.ceilings(arguments.device, arguments.dtypes, arguments.out)
        self.about = results.provenance(arguments.device) | {"clock": timing.clock_in_use(arguments.device)}
        self.failed = False
        print(ceilings.as_text(self.ceiling), flush=True)

    def measure(
        self,
        cases: dict[str, Case],
        file: str,
        providers: list[str] | None,
        show: Callable,
        more: Callable = lambda name: {},
    ) -> None:
        """Show what was measured by `show(name, case, rows)`, and add it with `more(name)` to a file of the folder of results."""
        arguments = self.arguments
        with empty_compiler_caches() if "first" in arguments.measure else nullcontext():
            for dtype in arguments.dtypes:
                for name, case in cases.items():
                    if self._has(file, name, case, dtype, providers):
                        continue
                    if time.monotonic() > self.deadline:
                        print(f"{name}, {dtype}: not begun, the time of --minutes is over")
                        continue
                    case = replace(case, dtype=dtype, device=arguments.device)
                    rows = self._rows(name, case, providers)
                    if not rows:
                        continue
                    rows = [row | more(name) | self.about for row in rows]
                    show(name, case, rows)
                    if arguments.out:
                        results.append(arguments.out / file, rows)

    def _rows(self, name: str, case: Case, providers: list[str] | None) -> list[dict]:
        """Return the rows of one case; none, after the reason, if it cannot be measured."""
        try:
            rows = measure_case(name, case, self._plan(name, providers))
        except (RuntimeError, MemoryError) as error:
            self.failed = True
            print(f"\n{name}: FAILED: {error}", flush=True)
            return []
        if not rows:
            print(f"\n{name}: none of --providers has to do with {case.operator}")
        return rows

    def _plan(self, name: str, providers: list[str] | None) -> Plan:
        def bar(items: Iterable, doing: str) -> Iterable:
            return progress(items, f"{name}: {doing}")

        metrics = tuple(self.arguments.measure)
        return Plan(providers, self.arguments.rounds, metrics, self.ceiling, self.broken, bar)

    def _has(self, file: str, name: str, case: Case, dtype: str, providers: list[str] | None) -> bool:
        """Return whether one run of this code on this machine has measured a case with all these providers."""
        if not self.arguments.resume:
            return False
        asked = {provider for provider in providers_of(case.operator) if not providers or provider in providers}
        same = ("commit", "lgf_kernels", "torch", "device", "threads", "clock")
        by_run: dict[str, set[str]] = {}
        for row in results.read(self.arguments.out / file):
            if (row["case"], row["dtype"]) == (name, dtype) and all(row[key] == self.about[key] for key in same):
                by_run.setdefault(row["run"], set()).add(row["provider"])
        return any(asked <= measured for measured in by_run.values())


def run_cases(arguments: argparse.Namespace, cases: dict[str, Case], broken: dict[str, str]) -> int:
    """Measure the cases. The exit code: 0 if every case could be measured."""

    def show(name: str, case: Case, rows: list[dict]) -> None:
        print(as_text(name, case.about, rows), flush=True)

    runner = Runner(arguments, broken)
    runner.measure(cases, results.LOSSES, arguments.providers, show)
    return int(runner.failed)


def run_sweeps(arguments: argparse.Namespace, broken: dict[str, str]) -> int:
    """Measure all sweeps, each printed when its last size is done. The exit code is that of `run_cases`."""
    arguments.measure = [metric for metric in arguments.measure if metric == "memory"]
    runner = Runner(arguments, broken)
    for name, sweep in families.sweeps(gpu=arguments.device != "cpu").items():
        rows, sizes = [], {sweeps.case_name(name, size): size for size in sweep.cases}

        def keep(_name: str, _case: Case, new: list[dict], rows: list = rows) -> None:
            rows.extend(new)

        def more(case_name: str, name: str = name, sizes: dict = sizes) -> dict:
            return {"sweep": name, "size": sizes[case_name]}

        cases = {case_name: sweep.cases[size] for case_name, size in sizes.items()}
        runner.measure(cases, results.SWEEPS, arguments.providers or list(sweeps.PROVIDERS), keep, more)
        if arguments.out:
            rows = [row for row in results.latest(results.read(arguments.out / results.SWEEPS)) if row["sweep"] == name]
        for dtype in arguments.dtypes:
            if of_type := [row for row in rows if row["dtype"] == dtype]:
                print(sweeps.as_text(name, sweep, of_type), flush=True)
    return int(runner.failed)


def progress(items: Iterable, doing: str) -> Iterable:
    """Return the items behind a bar on a terminal, and behind nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(items, desc=doing, leave=False, disable=None)


@contextmanager
def empty_compiler_caches():
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
