"""Which configuration of the Triton kernels is fastest here: measured ahead of time, for the `triton_configs.py` of each family.

  python benchmarks/tools/tune.py --device cuda

For every key of the tables in those files the rows it has, and those that differ from the first in one number, are checked and
timed in interleaved runs. Nothing changes by itself: the best are printed as lines to copy, with their times, and kept in
tune.jsonl.
"""

import here  # noqa: F401  # isort: skip

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

from lgf_bench import correctness, results, timing
from lgf_bench.cases import CASES, Case
from lgf_bench.choices import DTYPES
from lgf_bench.errors import UserError
from lgf_bench.measure import LONGEST_REASON, device_works
from lgf_bench.runner import progress

from lgf_kernels.core import gpu
from lgf_kernels.core.registry import Call
from lgf_kernels.gram_flow import triton_configs as flow_configs
from lgf_kernels.token_relation import triton_configs as relation_configs

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
    """A table of configurations: its module, the function that reads it, the case that uses it, the pass that shows it."""

    configs: ModuleType
    name: str
    function: str
    case: Case
    part: str


LATENT, RELATION = CASES["cogvideox-latent"], CASES["videorepa-24x150"]
TABLES = (
    Table(flow_configs, "FORWARD", "forward", LATENT, "forward"),
    Table(flow_configs, "BACKWARD", "backward", LATENT, "backward"),
    Table(relation_configs, "DISTANCES", "distances", RELATION, "both"),
    Table(relation_configs, "PRODUCTS", "products", RELATION, "both"),
    Table(flow_configs, "FORWARD_ONE_GRAM", "forward", CASES["cogvideox-latent-cached"], "forward"),
    Table(
        flow_configs, "BACKWARD_TWO_PASSES", "backward", replace(LATENT, shape=(*LATENT.shape[:-1], 512)), "backward"
    ),
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"], metavar="DTYPE")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each candidate (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"add the numbers to {TUNE} in DIR")
    parser.add_argument("--resume", action="store_true", help="leave out what --out has already, of this commit")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="M", help="begin no table after M minutes"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.resume and not arguments.out:
            raise UserError("--resume looks for what is there already in --out: name that folder too.")
        run(arguments)
    except UserError as error:
        print(f"tune.py: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    if not arguments.device.startswith("cuda"):
        raise UserError("tune times kernels on a GPU: add --device cuda.")
    if reason := gpu.triton_unsupported_reason(Call("lgf_kl", arguments.device)):
        raise UserError(f"tune cannot run: {reason}.")
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
    call = case.call()
    true = correctness.truth(case)
    with steered(table.configs, table.function, call, case) as (first, choose):
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
