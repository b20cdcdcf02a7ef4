"""Which configuration of the Triton kernels is fastest here: measured ahead of time, for `triton_kernels/configs.py`.

For every key of the tables in that file the rows it has, and those that differ from the first in one number, are checked and timed
in interleaved runs. Nothing changes by itself: the best are printed as lines to copy, with their times, and kept in tune.jsonl.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

from lgf_kernels import triton_kernels
from lgf_bench import correctness, results, timing
from lgf_bench.cases import CASES, Case
from lgf_bench.errors import UserError
from lgf_bench.measure import LONGEST_REASON, device_works
from lgf_bench.runner import progress

TUNE = "tune.jsonl"
#: What a number of a configuration is changed to, one at a time.
CHOICES = {
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "BLOCK_C": (16, 32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128),
    "ROWS": (2, 4, 8),
}


class Table(NamedTuple):
    """A table of configs.py: the function that reads it, the case that uses it, and the pass that shows it."""

    name: str
    function: str
    case: Case
    part: str


LATENT, RELATION = CASES["cogvideox-latent"], CASES["videorepa-24x150"]
TABLES = (
    Table("FORWARD", "forward", LATENT, "forward"),
    Table("BACKWARD", "backward", LATENT, "backward"),
    Table("DISTANCES", "distances", RELATION, "both"),
    Table("PRODUCTS", "products", RELATION, "both"),
    Table("FORWARD_ONE_GRAM", "forward", CASES["cogvideox-latent-cached"], "forward"),
    Table("BACKWARD_TWO_PASSES", "backward", replace(LATENT, shape=(*LATENT.shape[:-1], 512)), "backward"),
)


def run(arguments: argparse.Namespace) -> None:
    if not arguments.device.startswith("cuda"):
        raise UserError("tune times kernels on a GPU: add --device cuda.")
    if why_not := triton_kernels.why_not("lgf_kl", arguments.device):
        raise UserError(f"tune cannot run: {why_not}.")
    deadline = time.monotonic() + 60 * arguments.minutes
    about = results.provenance(arguments.device)
    kept = results.read(arguments.out / TUNE) if arguments.resume else []
    done = {(row["table"], row["dtype"]) for row in kept if row["commit"] == about["commit"]}
    for dtype, table in itertools.product(arguments.dtypes, TABLES):
        if (table.name, dtype) in done:
            continue
        if time.monotonic() > deadline:
            print(f"{table.name}, {dtype}: not begun, the time of --minutes is over")
            continue
        case = replace(table.case, dtype=dtype, device=arguments.device)
        rows = tune(table, case, arguments.rounds)
        print(as_text(table, dtype, rows), flush=True)
        if arguments.out:
            results.append(arguments.out / TUNE, [row | about for row in rows])


def tune(table: Table, case: Case, rounds: int) -> list[dict]:
    """A row for each candidate: its numbers, whether it is right, and its times."""
    from lgf_kernels.triton_kernels import configs

    call = case.call()
    true = correctness.truth(case)
    with steered(configs, table.function, call, case) as (first, choose):
        rows, functions = {}, {}
        for candidate in progress(list(candidates(first)), f"{table.name}: compiling"):
            name = str(candidate)
            row = rows[name] = {"table": table.name, "dtype": case.dtype, "part": table.part, **candidate._asdict()}
            row["candidate"] = name
            row |= _check(choose(candidate), case, true)
            if row["status"] == "right":
                functions[name] = choose(candidate)
        for name, seconds in timing.interleaved(functions, case, rounds).items():
            rows[name] |= timing.spread(seconds[table.part])
    return list(rows.values())


class steered:
    """Within it the function of configs.py gives what was chosen last. Enters as (the table's own rows, choose), where
    `choose(candidate)` is the operator run with that candidate, its backward included."""

    def __init__(self, configs, function: str, call: Callable, case: Case):
        self.configs, self.function, self.call, self.case = configs, function, call, case
        self.current, self.own = None, None

    def __enter__(self) -> tuple[list, Callable]:
        original = getattr(self.configs, self.function)

        def instead(*key):
            self.own = self.own or original(*key)
            return [self.current] if self.current else original(*key)

        self.patch = mock.patch.object(self.configs, self.function, instead)
        self.patch.start()
        correctness.answer(self.choose(None), self.case)
        return self.own, self.choose

    def choose(self, candidate) -> Callable:
        def function(student, teachers):
            self.current = candidate
            return self.call(student, teachers, backend="triton")

        return function

    def __exit__(self, *exception) -> None:
        self.patch.stop()


def candidates(own: list[NamedTuple]) -> Iterator[NamedTuple]:
    """The table's own rows, then all that differ from the first in one number."""
    seen = dict.fromkeys(own)
    yield from seen
    for name in own[0]._fields:
        for value in CHOICES.get(name, ()):
            candidate = own[0]._replace(**{name: value})
            if candidate not in seen:
                seen[candidate] = None
                yield candidate


def _check(function: Callable, case: Case, true: correctness.Answer) -> dict:
    try:
        off = correctness.errors(correctness.answer(function, case), true)
    except Exception as error:  # too much shared memory, too many registers, or the compiler's own faults
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
        if not device_works(case.device):
            raise UserError(f"a candidate broke the GPU for this process: {why}.") from error
        return {"status": "failed", "why": why}
    return {"status": "right" if correctness.is_right(off, case) else "wrong"}


def as_text(table: Table, dtype: str, rows: list[dict]) -> str:
    """The timed candidates, fastest first, as the lines of a table."""
    timed = sorted((row for row in rows if "median_ms" in row), key=lambda row: row["median_ms"])
    lines = [f"\n{table.name}, {dtype}, {table.part}:"]
    lines += [
        f"  {row['candidate']},  # {row['median_ms']:.4f} ms [{row['low_ms']:.4f} .. {row['high_ms']:.4f}]"
        for row in timed
    ]
    lines += [f"  # {row['candidate']}: {row.get('why', 'WRONG ANSWER')}" for row in rows if "median_ms" not in row]
    return "\n".join(lines)
