"""Measuring one case after the other: shown when it is done, kept on disk, left out when it is there already."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from . import ceilings, results, sweeps, timing
from .cases import Case
from .errors import UserError
from .measure import BrokenDeviceError, Plan, measure_case
from .providers import BROKEN, table
from .providers import broken as broken_providers
from .table import as_text


class Runner:
    """One run of `lgf bench`: the machine's ceilings, where numbers go, and until when."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
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
        """`show(name, case, rows)` what was measured, and add it with `more(name)` to a file of the folder of results."""
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
        """Of one case; none, and why, if it cannot be measured."""
        try:
            rows = measure_case(name, case, self._plan(name, providers))
        except BrokenDeviceError as broken:
            self._start_anew_without(*broken.args)
        except (RuntimeError, MemoryError) as error:
            self.failed = True
            print(f"\n{name}: FAILED: {error}", flush=True)
            return []
        if not rows:
            print(f"\n{name}: none of --providers has to do with {case.operator}")
        return rows

    def _start_anew_without(self, provider: str, why: str) -> NoReturn:
        """This process in a new one, which has a working GPU, knows the provider that broke it and goes on from here."""
        if not self.arguments.out:
            raise UserError(f"{provider} broke the GPU for this process: {why}. Leave it out with --providers.")
        print(f"{provider} broke the GPU for this process ({why}): starting anew without it", flush=True)
        os.environ[BROKEN] = json.dumps(broken_providers() | {provider: f"broke the GPU: {why}"})
        os.execv(sys.executable, [*sys.orig_argv, "--resume"])

    def _plan(self, name: str, providers: list[str] | None) -> Plan:
        def bar(items: Iterable, doing: str) -> Iterable:
            return progress(items, f"{name}: {doing}")

        return Plan(providers, self.arguments.rounds, tuple(self.arguments.measure), self.ceiling, bar)

    def _has(self, file: str, name: str, case: Case, dtype: str, providers: list[str] | None) -> bool:
        """Whether to leave a case out, since one run of this code on this machine has measured it with all these providers."""
        if not self.arguments.resume:
            return False
        asked = {
            provider
            for provider, it in table().items()
            if case.operator in it.operators and (not providers or provider in providers)
        }
        same = ("commit", "lgf_kernels", "torch", "device", "threads", "clock")
        by_run: dict[str, set[str]] = {}
        for row in results.read(self.arguments.out / file):
            if (row["case"], row["dtype"]) == (name, dtype) and all(row[key] == self.about[key] for key in same):
                by_run.setdefault(row["run"], set()).add(row["provider"])
        return any(asked <= measured for measured in by_run.values())


def run_cases(arguments: argparse.Namespace, cases: dict[str, Case]) -> int:
    """The exit code: 0 if every case could be measured."""

    def show(name: str, case: Case, rows: list[dict]) -> None:
        print(as_text(name, case, rows), flush=True)

    runner = Runner(arguments)
    runner.measure(cases, results.LOSSES, arguments.providers, show)
    return int(runner.failed)


def run_sweeps(arguments: argparse.Namespace) -> int:
    """All sweeps, each printed when its last size is done. The exit code is that of `run_cases`."""
    arguments.measure = [metric for metric in arguments.measure if metric == "memory"]
    runner = Runner(arguments)
    for name, sweep in sweeps.sweeps(arguments.device).items():
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
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(items, desc=doing, leave=False, disable=None)


@contextmanager
def empty_compiler_caches():
    """Inductor's and Triton's caches in a new folder, so that a first call compiles."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="lgf-bench-", ignore_cleanup_errors=True) as folder:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            os.environ[name] = str(Path(folder, name.lower()))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
