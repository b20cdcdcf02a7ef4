"""B against A: two folders or files of results, or two commits of this repository.

Commits are checked out beside each other, built, and measured in turns, A B A B, by the benchmark of the present checkout, so that
both are asked the same. Only that gives a verdict. Results from files come from two runs, whose ratios hold the drift of the
machine too: two runs of the same code differ by more than the spread within either.
"""

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

from lgf_trainer.errors import TrainerError
from lgf_trainer.lock import claim

from . import results
from .checkout import environment, git, is_checkout
from .counting import PASSES
from .errors import UserError
from .table import milliseconds, number

#: Were both commits the same, all turns of one would be faster than all of the other, which is what `verdict` asks for, in at most
#: 2 * 5! * 5! / 10! = 1 of 126 rows. With 3 turns it would be 1 of 10.
TURNS = 5
WITHIN = "within the spread"
#: What the names of the folders with checkouts begin with.
FOLDERS = "lgf-compare-"


def compare(a: str, b: str, arguments: argparse.Namespace) -> None:
    if Path(a).exists() and Path(b).exists():
        rows_a, rows_b = load(Path(a)), load(Path(b))
        print(as_text(a, b, rows_a, rows_b, "two runs: a ratio holds the drift of the machine too", spread_of_two_runs))
    else:
        rows_a, rows_b = _of_commits(a, b, arguments)
        print(as_text(a, b, rows_a, rows_b, f"measured in turns, {TURNS} times each", verdict))


def load(place: Path) -> dict[tuple, dict]:
    """The latest row of each case, type and provider, of a file or of all in a folder."""
    files = [place] if place.is_file() else sorted(place.rglob("*.jsonl"))
    rows = [row for file in files for row in results.read(file) if "provider" in row]
    if not rows:
        raise UserError(f"there are no results in {place}.")
    return {_key(row): row for row in results.latest(rows) if row["status"] != "absent"}


def _key(row: dict) -> tuple:
    return row["case"], row["dtype"], row["provider"]


def as_text(a: str, b: str, rows_a: dict, rows_b: dict, note: str, judge: Callable[[dict, dict], str]) -> str:
    """What both have, with what `judge` says of the times, and what only one has."""
    both = [key for key in rows_a if key in rows_b]
    lines = [
        f"B = {b} against A = {a}; {note}",
        f"  {'case':<28}{'type':<10}{'provider':<14}{'A':>10}{'B':>10}{'A / B':>9}",
    ]
    lines += [_line(key, rows_a[key], rows_b[key], judge) for key in both]
    for name, rows, others in (("A", rows_a, rows_b), ("B", rows_b, rows_a)):
        if only := [" ".join(key) for key in rows if key not in others]:
            lines.append(f"  only in {name}: {', '.join(only)}")
    devices = {row["device"] for row in (*rows_a.values(), *rows_b.values())}
    if len(devices) > 1:
        lines.append(f"  A and B are of different devices: {', '.join(sorted(devices))}")
    return "\n".join(lines)


def _line(key: tuple, a: dict, b: dict, judge: Callable[[dict, dict], str]) -> str:
    start = f"  {key[0]:<28}{key[1]:<10}{key[2]:<14}"
    if {a["status"], b["status"]} != {"right"}:
        return f"{start}{a['status']:>10}{b['status']:>10}   no ratio: an answer is missing or off"
    a, b = a["both"], b["both"]
    ratio = number(a["median_ms"] / b["median_ms"], ".2f", "x")
    return f"{start}{milliseconds(a['median_ms']):>10}{milliseconds(b['median_ms']):>10}{ratio:>9}  {judge(a, b)}"


def verdict(a: dict, b: dict) -> str:
    """What may be claimed: nothing, as long as the quartiles of the two overlap."""
    if b["high_ms"] < a["low_ms"]:
        return "faster"
    return "slower" if b["low_ms"] > a["high_ms"] else WITHIN


def spread_of_two_runs(a: dict, b: dict) -> str:
    """The same without a claim: what lies beyond the spread of either run may be the machine's doing."""
    return WITHIN if verdict(a, b) == WITHIN else "beyond the spread"


def _of_commits(a: str, b: str, arguments: argparse.Namespace) -> tuple[dict, dict]:
    no_results = f"{a!r} and {b!r} are not both files or folders of results"
    if not is_checkout():
        raise UserError(f"{no_results}, and commits need a checkout of the repository.")
    for commit in (a, b):
        found = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
        if found.stderr:  # git reads no checkout of another user's
            raise UserError(f"{no_results}, and git says of this checkout: {found.stderr.splitlines()[0]}")
        if found.returncode:
            raise UserError(f"{no_results}, and {commit!r} is no commit.")
    remove_leftovers()
    with _own_folder() as folder:
        for name, commit in (("a", a), ("b", b)):
            print(f"building {name.upper()} = {commit}", file=sys.stderr, flush=True)
            _check_out(commit, folder / name, arguments.device)
        merged = in_turns(lambda name: _measure(folder / name, arguments))
    return merged["a"], merged["b"]


@contextmanager
def _own_folder() -> Iterator[Path]:
    """For the two checkouts, and claimed, so that other comparisons know that this one lives."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS))
    with claim(folder):
        try:
            yield folder
        finally:
            _remove(folder)


def remove_leftovers() -> None:
    """Remove the checkouts of comparisons that were killed: those in folders which no process holds any more."""
    lines = git("worktree", "list", "--porcelain").stdout.splitlines()
    checkouts = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    for folder in {place.parent for place in checkouts if place.parent.name.startswith(FOLDERS)}:
        with suppress(TrainerError), claim(folder):
            _remove(folder)


def _remove(folder: Path) -> None:
    for name in ("a", "b"):
        git("worktree", "remove", "--force", folder / name)
    shutil.rmtree(folder, ignore_errors=True)


def in_turns(measure: Callable[[str], list[dict]]) -> dict[str, dict[tuple, dict]]:
    """Rows of "a" and "b", measured A B A B ..., with the median of each time over the turns, and all the turns' spread."""
    found: dict[str, dict[tuple, list[dict]]] = {"a": {}, "b": {}}
    for _ in range(TURNS):
        for name in found:
            for row in measure(name):
                found[name].setdefault(_key(row), []).append(row)
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
    """The library of a commit with the benchmark of this one, built for a device."""
    done = git("worktree", "add", "--detach", place, commit)
    if done.returncode:
        raise UserError(f"git could not check out {commit}: {done.stderr.strip()}")
    here = place / "lgf_kernels" / "bench"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(Path(__file__).parent, here, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | ({"LGF_CUDA": "off"} if device == "cpu" else {})
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if built.returncode:
        raise UserError(f"{commit} does not build:\n{built.stdout[-2000:]}{built.stderr[-2000:]}")


def _measure(place: Path, arguments: argparse.Namespace) -> list[dict]:
    """One run of `lgf bench` in a checkout, of times only."""
    with tempfile.TemporaryDirectory(dir=place.parent) as out:
        command = [sys.executable, "-P", "-m", "lgf_kernels.bench", *arguments.what, "--out", out, "--measure"]
        command += ["--device", arguments.device, "--rounds", str(arguments.rounds), "--window", str(arguments.window)]
        command += ["--dtypes", *arguments.dtypes]
        for option in ("shapes", "providers"):
            if values := getattr(arguments, option):
                command += [f"--{option}", *values]
        command += ["--clock", arguments.clock]
        if arguments.threads:
            command += ["--threads", str(arguments.threads)]
        done = subprocess.run(command, env=environment(place), stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f"the benchmark failed in {place.name.upper()}, with exit code {done.returncode}.")
        return [row for row in results.read(Path(out, results.LOSSES)) if row["status"] != "absent"]
