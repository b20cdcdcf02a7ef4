"""Comparison of two commits of this repository, built and measured in turns, A B A B, by the benchmark of this checkout.

  python benchmarks/tools/compare_commits.py A B [OPERATOR ...] [options of `lgf bench`]

Both are measured alike, on the same machine, at the same time: this gives a verdict, which two runs at different times cannot.
"""

import here  # isort: skip

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lgf_bench import results
from lgf_bench.checkout import environment, git, is_checkout
from lgf_bench.cli import JOBS, check, parser
from lgf_bench.compare import as_text, key_of, verdict
from lgf_bench.families.base import PASSES
from lgf_cli.errors import UserError

#: If both commits are the same, all turns of one are faster than all of the other, which `verdict` requires, in at most
#: 2 * 5! * 5! / 10! = 1 of 126 rows; with 3 turns in 1 of 10.
TURNS = 5
#: Prefix of the folders with checkouts.
FOLDERS = "lgf-compare-"


def main(argv: list[str]) -> int:
    commits = argparse.ArgumentParser(
        prog="compare_commits.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commits.add_argument("a", metavar="A", help="a commit")
    commits.add_argument("b", metavar="B", help="the commit to compare with it")
    chosen, rest = commits.parse_known_args(argv)
    arguments = parser().parse_args(rest)
    try:
        if jobs := [what for what in arguments.what if what in JOBS]:
            raise UserError(f"it compares operators and cases, not the job {jobs[0]!r}.")
        check(arguments)
        rows_a, rows_b = measured(chosen.a, chosen.b, arguments)
    except UserError as error:
        print(f"compare_commits.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncompare_commits.py: interrupted.", file=sys.stderr)
        return 130
    print(as_text(chosen.a, chosen.b, rows_a, rows_b, f"measured in turns, {TURNS} times each", verdict))
    return 0


def measured(a: str, b: str, arguments: argparse.Namespace) -> tuple[dict, dict]:
    """Return the rows of both commits."""
    if not is_checkout():
        raise UserError("commits need a git checkout of the repository.")
    for commit in (a, b):
        found = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
        if found.stderr:  # git reads no checkout of another user's
            raise UserError(f"git says of this checkout: {found.stderr.splitlines()[0]}")
        if found.returncode:
            raise UserError(f"{commit!r} is no commit of this repository.")
    remove_leftovers()
    with _own_folder() as folder:
        for name, commit in (("a", a), ("b", b)):
            print(f"building {name.upper()} = {commit}", file=sys.stderr, flush=True)
            _check_out(commit, folder / name, arguments.device)
        merged = in_turns(lambda name: _measure(folder / name, arguments))
    return merged["a"], merged["b"]


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Make a folder for the two checkouts, locked for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS))
    with _lock(folder):
        try:
            yield folder
        finally:
            _remove(folder)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock", timeout=0)


def remove_leftovers() -> None:
    """Remove the checkouts of comparisons that were killed: those in folders that no process has locked."""
    lines = git("worktree", "list", "--porcelain").stdout.splitlines()
    checkouts = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    for folder in {place.parent for place in checkouts if place.parent.name.startswith(FOLDERS)}:
        with suppress(Timeout, OSError), _lock(folder):
            _remove(folder)


def _remove(folder: Path) -> None:
    for name in ("a", "b"):
        git("worktree", "remove", "--force", folder / name)
    shutil.rmtree(folder, ignore_errors=True)


def in_turns(measure: Callable[[str], list[dict]]) -> dict[str, dict[tuple, dict]]:
    """Return rows of "a" and "b", measured A B A B ..., with the median of each time over the turns, and all the turns' spread."""
    found: dict[str, dict[tuple, list[dict]]] = {"a": {}, "b": {}}
    for _ in range(TURNS):
        for name in found:
            for row in measure(name):
                found[name].setdefault(key_of(row), []).append(row)
    return {name: {key: _merged(rows) for key, rows in turns.items()} for name, turns in found.items()}


def _merged(rows: list[dict]) -> dict:
    off = next((row for row in rows if row["status"] != "right"), None)
    if off is not None:
        return off
    choices = {"median_ms": statistics.median, "low_ms": min, "high_ms": max}
    return rows[0] | {
        part: {key: choose(row[part][key] for row in rows) for key, choose in choices.items()} for part in PASSES
    }


def _check_out(commit: str, place: Path, device: str) -> None:
    """Check out the library of a commit with the benchmark of this one, and build it for a device."""
    done = git("worktree", "add", "--detach", place, commit)
    if done.returncode:
        raise UserError(f"git could not check out {commit}: {done.stderr.strip()}")
    bench = place / "benchmarks" / "lgf_bench"
    shutil.rmtree(bench, ignore_errors=True)
    shutil.copytree(here.ROOT / "benchmarks" / "lgf_bench", bench, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | ({"LGF_CUDA": "off"} if device == "cpu" else {})
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if built.returncode:
        raise UserError(f"{commit} does not build:\n{built.stdout[-2000:]}{built.stderr[-2000:]}")


def _measure(place: Path, arguments: argparse.Namespace) -> list[dict]:
    """Return the rows of one run of `lgf bench` in a checkout, of times only."""
    with tempfile.TemporaryDirectory(dir=place.parent) as out:
        command = [sys.executable, "-P", "-m", "lgf_bench", *arguments.what, "--out", out, "--measure"]
        command += ["--device", arguments.device, "--rounds", str(arguments.rounds), "--clock", arguments.clock]
        for option in ("dtypes", "shapes", "providers"):
            if values := getattr(arguments, option):
                command += [f"--{option}", *values]
        for option in ("window", "threads"):
            if value := getattr(arguments, option):
                command += [f"--{option}", str(value)]
        done = subprocess.run(command, env=environment(place), stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f"the benchmark failed in {place.name.upper()}, with exit code {done.returncode}.")
        return [row for row in results.read(Path(out, results.LOSSES)) if row["status"] != "absent"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
