"""Speed, memory and accuracy of the operators on this machine, next to all that one would run instead.

  lgf bench                                       every case that suits the device, every provider
  lgf bench token_relation --device cuda          one operator, on a GPU
  lgf bench moalign-24x150 --rounds 30            one case, with more rounds
  lgf bench lgf_kl --shapes 1,13,30,45,64         a shape of yours
  lgf bench sweeps                                cost as T, H*W, C, window and n grow, with fitted exponents
  lgf bench step                                  the share of a training step that the loss takes
  lgf bench --out results                         keep the numbers in a folder (without a name: benchmarks/results/<device>)
  lgf bench report                                docs/performance.md and its plots from benchmarks/results
  lgf bench --compare A B                         two folders of results; commits: benchmarks/tools/compare_commits.py

All cases take about a quarter of an hour on a CPU, most of it torch.compile and the slowest baselines; --providers leaves
them out. How to read the tables:

"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lgf_cli.errors import UserError
from lgf_cli.main import imported
from lgf_cli.verify import checked_device

from . import ceilings, processes, results, runner, timing
from .compare import compare
from .correctness import TOLERANCE
from .families import CASES, OPERATORS
from .families.base import Case
from .measure import METRICS
from .providers import all_names, providers
from .table import HOW_TO_READ

JOBS = {
    "sweeps": "cost as one size grows, with fitted exponents",
    "step": "the share of a training step that the loss takes (needs the [train] extra)",
    "ceilings": "only what the machine can do: copy, cache, GEMM; with --out the best of all times",
    "report": "write docs/performance.md and its plots from benchmarks/results",
}
#: Beyond it a number is a slip of the keyboard: torch would start so many, or fail in words of its own.
MOST_THREADS = 1024
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def parser() -> argparse.ArgumentParser:
    """Return the parser. Its help lists what there is to choose from."""
    lists = {
        "operators": {name: f"--shapes {it.shapes}" for name, it in OPERATORS.items()},
        "cases": {name: case.about + " (not on CPUs unless named)" * case.large for name, case in CASES.items()},
        "jobs": JOBS,
        **{f"providers of {name}": {one: it.about for one, it in providers(name).items()} for name in OPERATORS},
    }
    parser = argparse.ArgumentParser(
        prog="lgf bench", description=(__doc__ or "") + HOW_TO_READ, formatter_class=argparse.RawTextHelpFormatter,
        epilog="\n".join(listed(f"{title}:", entries) for title, entries in lists.items()),
    )  # fmt: skip
    add, default = parser.add_argument, "(default: %(default)s)"
    types = f"of {', '.join(TOLERANCE)}; default: float32 on CPUs, bfloat16 on GPUs"
    sizes = "such as 1,13,30,45,256, instead of the cases; of every operator that takes it"
    add("what", nargs="*", metavar="OPERATOR", help="an operator, a case, or a job; default: all cases")
    add("--device", default="cpu", help=f"cpu, cuda or cuda:N {default}")
    add("--shapes", nargs="+", metavar="SIZES", help=sizes)
    add("--window", type=int, help="with --shapes, of operators that have a window (default: 7)")
    add("--dtypes", nargs="+", choices=TOLERANCE, metavar="DTYPE", help=types)
    add("--providers", nargs="+", metavar="NAME", help="default: all")
    add(
        "--measure", nargs="*", choices=METRICS, default=list(METRICS), metavar="WHAT",
        help=listed("beside answers and times, default all:", METRICS),
    )  # fmt: skip
    add("--rounds", type=int, default=9, help=f"timed runs of each provider {default}")
    add("--threads", type=int, help="threads of the CPU (default: torch's)")
    add(
        "--clock", choices=timing.CLOCKS, default="wall",
        help="of CPUs. cpu: the time that this process gets, for machines busy with other things, with --threads 1",
    )  # fmt: skip
    add(
        "--out", type=Path, nargs="?", const=True, metavar="DIR",
        help="add the numbers to DIR; without DIR: benchmarks/results/<device>",
    )  # fmt: skip
    add("--resume", action="store_true", help="leave out cases that --out has already, of this commit")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="begin no case after so many minutes")
    add("--compare", nargs=2, metavar=("A", "B"), help="B against A: folders or files of results")
    add(
        "--model", metavar="NAME",
        help="of `step`: a released one on a GPU, such as CogVideoX-5B, Wan2.1-T2V-1.3B (default: the small CogVideoX-tiny)",
    )  # fmt: skip
    return parser


def listed(title: str, entries: dict[str, str]) -> str:
    return "\n".join([title, *(f"  {name}: {about}" for name, about in entries.items())])


def main(argv: list[str]) -> int:
    """Run the command; its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        kept = f" What was finished is in {arguments.out}; --resume goes on." if arguments.out else ""
        print(f"\nlgf bench: interrupted.{kept}", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    check(arguments)
    kind = arguments.device.partition(":")[0]
    arguments.dtypes = tuple(dict.fromkeys(arguments.dtypes or [DEFAULT_DTYPE[kind]]))
    if arguments.out is True:
        if not results.RESULTS.is_dir():
            raise UserError("--out needs a folder outside a checkout of the repository.")
        arguments.out = results.device_folder(arguments.device)
    if arguments.compare:
        compare(*arguments.compare)
        return 0
    return processes.run_isolated(run, arguments) if kind == "cuda" else run(arguments, {})


def run(arguments: argparse.Namespace, broken: dict[str, str]) -> int:
    """Run a job or the cases in this process; `broken`: providers to leave out, and the reason."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device.startswith("cuda:"):
        torch.cuda.set_device(arguments.device)  # events, streams and torch's sleep are those of the current device
    with timing.use_clock(arguments.clock):
        return _job(arguments, broken)


def _job(arguments: argparse.Namespace, broken: dict[str, str]) -> int:
    job = next((what for what in arguments.what if what in JOBS), None)
    if job is None:
        return runner.run_cases(arguments, chosen_cases(arguments), broken)
    if job == "sweeps":
        return runner.run_sweeps(arguments, broken)
    if job == "ceilings":
        print(ceilings.as_text(ceilings.ceilings(arguments.device, arguments.dtypes, arguments.out, again=True)))
    else:
        imported(f"lgf bench {job}", f"{__package__}.{job}", '"lgf-kernels[bench,train]"').run(arguments)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise every mistake that can be seen before anything runs."""
    known = (*OPERATORS, *CASES, *JOBS)
    if unknown := [what for what in arguments.what if what not in known]:
        raise UserError(f"there is no operator, case or job {unknown[0]!r}; choose from {', '.join(known)}.")
    if unknown := [name for name in arguments.providers or () if name not in all_names()]:
        raise UserError(f"there is no provider {unknown[0]!r}; choose from {', '.join(all_names())}.")
    if arguments.rounds < 2:
        raise UserError(f"--rounds must be at least 2 to give a median and a spread, got {arguments.rounds}.")
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        raise UserError(f"--threads must be 1 to {MOST_THREADS}, got {arguments.threads}.")
    if not arguments.minutes >= 0:
        raise UserError(f"--minutes must not be negative, got {arguments.minutes:g}.")
    if arguments.clock == "cpu" and (arguments.device != "cpu" or arguments.threads != 1):
        raise UserError("--clock cpu adds up the time of all threads of a CPU: it needs --device cpu and --threads 1.")
    if arguments.window is not None and not arguments.shapes:
        raise UserError("--window goes with --shapes; the cases have windows of their own.")
    if arguments.resume and not arguments.out:
        raise UserError("--resume looks for what is there already in --out: name that folder too.")
    if isinstance(arguments.out, Path):
        if arguments.out.is_file():
            raise UserError(f"--out {arguments.out} is a file. Name a folder.")
        if str(arguments.out) in known:
            raise UserError(
                f"--out took {str(arguments.out)!r} for its folder: put what to measure before the options."
            )
    checked_device(arguments.device)
    if jobs := [what for what in arguments.what if what in JOBS]:
        if arguments.compare:
            raise UserError(f"--compare is of operators and cases, not of the job {jobs[0]!r}.")
        if len(arguments.what) > 1:
            raise UserError(f"{jobs[0]!r} is a job of its own; name nothing else with it.")
    if arguments.model and jobs != ["step"]:
        raise UserError("--model is of the job 'step'; cases have sizes of their own, or those of --shapes.")
    if arguments.providers and jobs == ["step"]:
        raise UserError(
            "'step' takes no --providers: it measures eager, compile and what the library chooses (LGF_BACKEND)."
        )
    chosen_cases(arguments)


def chosen_cases(arguments: argparse.Namespace) -> dict[str, Case]:
    """Return what is asked for by name: of shapes, of operators, or of cases; a CPU gets large cases only by their names."""
    if arguments.shapes:
        return _cases_of_shapes(arguments)
    cpu = arguments.device == "cpu"
    asked = arguments.what or OPERATORS
    return {
        name: case
        for name, case in CASES.items()
        if name in asked or (case.operator in asked and not (cpu and case.large))
    }


def _cases_of_shapes(arguments: argparse.Namespace) -> dict[str, Case]:
    """Return the cases of each shape: of the operators named, all of which must take it, or of all that do."""
    if wrong := [what for what in arguments.what if what not in OPERATORS]:
        raise UserError(f"--shapes goes with an operator, not with {wrong[0]!r}; choose from {', '.join(OPERATORS)}.")
    cases, window = {}, arguments.window
    for text in arguments.shapes:
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
            raise UserError(f"--shapes takes numbers with commas, such as 1,13,30,45,256; got {text!r}.")
        shape = tuple(map(int, text.split(",")))
        asked = arguments.what or list(OPERATORS)
        takers = [name for name in asked if OPERATORS[name].takes(shape)]
        if not takers or (arguments.what and takers != asked):
            forms = (f"{name} takes {OPERATORS[name].shapes}" for name in asked if name not in takers)
            raise UserError(f"--shapes {text}: {'; '.join(forms)}.")
        for operator in takers:
            case, name = OPERATORS[operator](shape), f"{operator}-{text.replace(',', 'x')}"
            if window not in (None, getattr(case, "window", window)):
                case, name = _with_window(case, window), f"{name}-k{window}"
            cases[name] = case
    if window is not None and not any(hasattr(case, "window") for case in cases.values()):
        raise UserError("--window: none of the operators that take these --shapes has a window.")
    return cases


def _with_window(case: Case, window: int) -> Case:
    try:
        return replace(case, window=window)
    except ValueError as error:
        raise UserError(f"--window: {error}") from error
