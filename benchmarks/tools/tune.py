"""Times of configurations of the Triton kernels on this GPU, for the `triton_configs.py` of each family.

  python benchmarks/tools/tune.py --device cuda

For every key of the tables in those files the rows that it has, and those that differ from the first in one number, are checked
and timed in interleaved runs. Nothing changes by itself: the best are printed as lines to copy, with their times, and kept in
tune.jsonl.
"""

import here  # noqa: F401  # isort: skip

if __name__ == "__main__":  # before the imports, so that an error of one line names a missing package
    import sys

    from lgf_cli.main import imported

    sys.exit(imported("tune.py", "tune", "tqdm").main(sys.argv[1:]))

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import le
from pathlib import Path
from typing import NamedTuple

from lgf_bench import correctness, results, timing
from lgf_bench.families import TUNED
from lgf_bench.families.base import Case, Loss, Tuned
from lgf_bench.measure import checked, progress
from lgf_bench.processes import BrokenDeviceError
from lgf_cli.errors import UserError

from lgf_kernels.core import gpu
from lgf_kernels.core import triton_launch as launch
from lgf_kernels.core.registry import OPERATORS, Call

#: Values that a number of a configuration is changed to, one at a time.
CHOICES = {
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "BLOCK_C": (16, 32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128),
    "ROWS": (2, 4, 8),
}


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
    done = {(row["family"], row["table"], row["dtype"]) for row in kept if row["commit"] == about["commit"]}
    for dtype, tuned in itertools.product(arguments.dtypes, TUNED):
        if (family(tuned), tuned.table, dtype) in done:
            continue
        if time.monotonic() > deadline:
            print(f"{tuned.table}, {dtype}: not begun, the time of --minutes is over")
            continue
        case = replace(tuned.case, dtype=dtype, device=arguments.device)
        rows = tune(tuned, case, arguments.rounds)
        print(as_text(tuned, dtype, rows) if rows else f"{tuned.table}, {dtype}: no kernel uses it here", flush=True)
        if arguments.out:
            results.append(arguments.out / results.TUNE, [row | about for row in rows])


def family(tuned: Tuned) -> str:
    return OPERATORS[tuned.case.operator].family


def rows_of(tuned: Tuned) -> dict[object, list[NamedTuple]]:
    """Return the table: by what the family chooses, the rows."""
    configs = importlib.import_module(".triton_configs", OPERATORS[tuned.case.operator].package)
    return getattr(configs, tuned.table)


def comes_from(rows: Sequence[NamedTuple], table: dict[object, list[NamedTuple]]) -> bool:
    """Return whether the rows for a call are some of a table, with tiles and blocks cut to the call."""
    return any(
        len(rows) == len(own) and all(type(a) is type(b) and all(map(le, a, b)) for a, b in zip(rows, own, strict=True))
        for own in table.values()
    )


def tune(tuned: Tuned, case: Case, rounds: int) -> list[dict]:
    """Return a row for each candidate: its numbers, whether it is right, its times. None if no kernel uses the table here."""
    true = correctness.truth(case)
    rows, functions = {}, {}
    with choosing(rows_of(tuned), case) as (own, function_of):
        if not own:
            return []
        for candidate in progress(list(candidates(own)), f"{tuned.table}: compiling"):
            name = str(candidate)
            row = {
                "family": family(tuned),
                "table": tuned.table,
                "dtype": case.dtype,
                "part": tuned.part,
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
        for name, seconds in timing.interleaved(functions, case, range(rounds)).items():
            rows[name] |= timing.spread(seconds[tuned.part])
    return list(rows.values())


@contextmanager
def choosing(table: dict, case: Case) -> Iterator[tuple[list, Callable[..., Loss]]]:
    """Yield (the table's own rows, candidate -> the operator with that candidate, its backward included)."""
    own, current = [], None

    def choose(rows: Sequence[tuple]) -> tuple:
        if not comes_from(rows, table):
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


def as_text(tuned: Tuned, dtype: str, rows: list[dict]) -> str:
    """Return the timed candidates, fastest first, as the lines of a table of configurations."""
    timed = sorted((row for row in rows if "median_ms" in row), key=lambda row: row["median_ms"])
    lines = [f"\n{family(tuned)}, {tuned.table}, {dtype}, {tuned.part}:"]
    lines += [
        f"  {row['candidate']},  # {row['median_ms']:.4f} ms [{row['low_ms']:.4f} .. {row['high_ms']:.4f}]"
        for row in timed
    ]
    lines += [f"  # {row['candidate']}: {row.get('why', 'WRONG ANSWER')}" for row in rows if "median_ms" not in row]
    return "\n".join(lines)
