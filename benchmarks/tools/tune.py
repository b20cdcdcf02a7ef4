"""The fastest configuration of the Triton kernels here, measured for the `triton_configs.py` of each family.

  python benchmarks/tools/tune.py --device cuda

For every key of the tables in those files the rows that it has, and those that differ from the first in one number, are checked
and timed in interleaved runs. Nothing changes by itself: the best are printed as lines to copy, with their times, and kept in
tune.jsonl.
"""

import here  # noqa: F401  # isort: skip

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lgf_bench import correctness, results, timing
from lgf_bench.families import CASES
from lgf_bench.families.base import Case, Loss
from lgf_bench.measure import checked
from lgf_bench.processes import BrokenDeviceError
from lgf_bench.runner import progress
from lgf_cli.errors import UserError

from lgf_kernels.core import gpu
from lgf_kernels.core import triton_launch as launch
from lgf_kernels.core.registry import Call
from lgf_kernels.gram_flow.triton_configs import Backward, Forward
from lgf_kernels.token_relation.triton_configs import Distances, Products

#: What a number of a configuration is changed to, one at a time.
CHOICES = {
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "BLOCK_C": (16, 32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128),
    "ROWS": (2, 4, 8),
}


class Table(NamedTuple):
    """A table of configurations: its name, what its rows are, the case that uses it, the pass that shows it."""

    name: str
    rows: type
    case: Case
    part: str


LATENT, RELATION = CASES["cogvideox-latent"], CASES["videorepa-24x150"]
WIDE = replace(LATENT, shape=(*LATENT.shape[:-1], 512), teacher_channels=(256, 256))
TABLES = (
    Table("FORWARD", Forward, LATENT, "forward"),
    Table("BACKWARD", Backward, LATENT, "backward"),
    Table("DISTANCES", Distances, RELATION, "both"),
    Table("PRODUCTS", Products, RELATION, "both"),
    Table("FORWARD_ONE_GRAM", Forward, CASES["cogvideox-latent-cached"], "forward"),
    Table("BACKWARD_TWO_PASSES", Backward, WIDE, "backward"),
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=correctness.TOLERANCE, default=["bfloat16"], metavar="DTYPE")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each candidate (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"add the numbers to {results.TUNE} in DIR")
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
    """Tune every table of every type that is not kept already."""
    if not arguments.device.startswith("cuda"):
        raise UserError("tune times kernels on a GPU: add --device cuda.")
    if reason := gpu.triton_unsupported_reason(Call("lgf_kl", arguments.device)):
        raise UserError(f"tune cannot run: {reason}.")
    deadline = time.monotonic() + 60 * arguments.minutes
    about = results.provenance(arguments.device)
    kept = results.read(arguments.out / results.TUNE) if arguments.resume else []
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
            results.append(arguments.out / results.TUNE, [row | about for row in rows])


def tune(table: Table, case: Case, rounds: int) -> list[dict]:
    """Return a row for each candidate: its numbers, whether it is right, and its times."""
    true = correctness.truth(case)
    rows, functions = {}, {}
    with choosing(table.rows, case) as (own, function_of):
        for candidate in progress(list(candidates(own)), f"{table.name}: compiling"):
            name = str(candidate)
            row = {
                "table": table.name,
                "dtype": case.dtype,
                "part": table.part,
                **candidate._asdict(),
                "candidate": name,
            }
            try:
                found, function = checked(name, lambda c=candidate: function_of(c), case, true)
            except BrokenDeviceError as error:
                raise UserError(f"a candidate broke the GPU for this process: {': '.join(error.args)}.") from error
            rows[name] = row | found
            if function:
                functions[name] = function
        for name, seconds in timing.interleaved(functions, case, rounds).items():
            rows[name] |= timing.spread(seconds[table.part])
    return list(rows.values())


@contextmanager
def choosing(kind: type, case: Case) -> Iterator[tuple[list, Callable[..., Loss]]]:
    """Enter as (the table's own rows, candidate -> the operator with that candidate, its backward included)."""
    own, current = [], None

    def choose(rows: Sequence[tuple]) -> tuple:
        if not isinstance(rows[0], kind):
            return rows[0]
        own[:] = own or rows
        return current or rows[0]

    def function_of(candidate: tuple | None) -> Loss:
        def function(**tensors):
            nonlocal current
            current = candidate
            return case.call(backend="triton", **tensors)

        return function

    with launch.overridden(choose=choose):
        correctness.answer(function_of(None), case)
        yield own, function_of


def candidates(own: list[NamedTuple]) -> Iterator[NamedTuple]:
    """Yield the table's own rows, then all that differ from the first in one number."""
    seen = dict.fromkeys(own)
    yield from seen
    for name in own[0]._fields:
        for value in CHOICES.get(name, ()):
            candidate = own[0]._replace(**{name: value})
            if candidate not in seen:
                seen[candidate] = None
                yield candidate


def as_text(table: Table, dtype: str, rows: list[dict]) -> str:
    """Return the timed candidates, fastest first, as the lines of a table of configurations."""
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
