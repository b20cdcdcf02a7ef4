"""Speed, memory and accuracy of the operators on this machine, next to everything one would run instead.

  lgf bench                                       every case that suits the device, every provider
  lgf bench token_relation --device cuda          one operator, on a GPU
  lgf bench moalign-24x150 --rounds 30            one case, closer
  lgf bench lgf_kl --shapes 1,13,30,45,64         a shape of yours
  lgf bench sweeps                                cost as T, H*W, C, window and n grow, with fitted exponents
  lgf bench step                                  the share of a training step that the loss takes
  lgf bench --out results                         keep the numbers in a folder (without a name: benchmarks/results/<device>)
  lgf bench report                                docs/performance.md and its plots from benchmarks/results
  lgf bench --compare A B                         two folders of results; commits: benchmarks/tools/compare_commits.py

All cases take about a quarter of an hour on a CPU, most of it torch.compile and the slowest baselines; --providers does without.
Each answer is checked against the oracle in float64 before it is timed: a wrong one is shown as wrong and timed no further. Times
are medians over interleaved runs [lower .. upper quartile]; ratios are with the fastest right answer that is not this library's, in
the same run. Memory is the peak beyond inputs, output and gradient. "call" is what forward and backward cost on inputs so small
that arithmetic takes no time, "first" the first call, which compiles. "of floor": the floor is max(FLOP / GEMM ceiling, bytes /
copy ceiling), with bytes = inputs read once and outputs written once per pass, and ceilings measured on this machine; 100 % is as
fast as it could do it at all.
"""

import argparse
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .choices import CLOCKS, DTYPES, JOBS, METRICS
from .errors import UserError

if TYPE_CHECKING:
    from .cases import Case

#: A slip of the keyboard beyond it: torch would start so many, or fail in words of its own.
MOST_THREADS = 1024
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def parser(prog: str = "lgf bench") -> argparse.ArgumentParser:
    """All but the lists of operators, cases and providers, which only --help needs (`with_lists`)."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="OPERATOR", help="an operator, a case, or a job; default: all cases")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--shapes", nargs="+", metavar="B,T,H,W,C", help="student shapes instead of the cases (relations: B,F,N,C)"
    )
    parser.add_argument("--window", type=int, default=7, help="with --shapes (default: %(default)s)")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        metavar="DTYPE",
        help=f"of {', '.join(DTYPES)}; default: float32 on CPUs, bfloat16 on GPUs",
    )
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument(
        "--measure",
        nargs="*",
        choices=METRICS,
        default=list(METRICS),
        metavar="WHAT",
        help="beside answers and times, default all:\n"
        + "\n".join(f"  {name}: {about}" for name, about in METRICS.items()),
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each provider (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: torch's)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="of CPUs. cpu: the time that this process gets, for machines busy with other things, with --threads 1",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const=True,
        metavar="DIR",
        help="add the numbers to DIR; without DIR: benchmarks/results/<device>",
    )
    parser.add_argument("--resume", action="store_true", help="leave out cases that --out has already, of this commit")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="M", help="begin no case after so many minutes"
    )
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="B against A: folders or files of results")
    parser.add_argument(
        "--config",
        default="tiny",
        choices=("tiny", "5b"),
        help="of `step`: the size of the model (default: %(default)s)",
    )
    return parser


def with_lists(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, with what there is to choose from below its help."""
    from .cases import CASES, OPERATORS
    from .providers import table

    cases = (f"{name}: {case.about}{' (not on CPUs unless named)' * case.large}" for name, case in CASES.items())
    lists = {
        "operators": OPERATORS,
        "cases": cases,
        "jobs": (f"{name}: {about}" for name, about in JOBS.items()),
        "providers": (f"{name}: {it.about}" for name, it in table().items()),
    }
    parser.epilog = "\n".join(f"{title}:\n  " + "\n  ".join(lines) for title, lines in lists.items())
    return parser


def main(argv: list[str]) -> int:
    """Run the command; its exit code."""
    wants_help = not {"-h", "--help"}.isdisjoint(argv)
    arguments = (with_lists(parser()) if wants_help else parser()).parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"lgf bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f" What was finished is in {arguments.out}; --resume goes on." if arguments.out else ""
        print(f"\nlgf bench: interrupted.{kept}", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    check(arguments)
    import torch

    from . import results, timing
    from .runner import run_cases

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device.startswith("cuda:"):
        torch.cuda.set_device(arguments.device)  # events, streams and torch's sleep are those of the current device
    timing.use_clock(arguments.clock)
    arguments.dtypes = tuple(dict.fromkeys(arguments.dtypes or [DEFAULT_DTYPE[torch.device(arguments.device).type]]))
    if arguments.out is True:
        if not results.RESULTS.is_dir():
            raise UserError("--out needs a folder outside a checkout of the repository.")
        arguments.out = results.device_folder(arguments.device)
    jobs = [what for what in arguments.what if what in JOBS]
    if arguments.compare:
        from .compare import compare

        if jobs:
            raise UserError(f"--compare is of operators and cases, not of the job {jobs[0]!r}.")
        compare(*arguments.compare)
        return 0
    if not jobs:
        return run_cases(arguments, chosen_cases(arguments))
    if len(arguments.what) > 1:
        raise UserError(f"{jobs[0]!r} is a job of its own; name nothing else with it.")
    return _job(jobs[0], arguments)


def _job(job: str, arguments: argparse.Namespace) -> int:
    from . import ceilings
    from .runner import run_sweeps

    if job == "sweeps":
        return run_sweeps(arguments)
    if job == "ceilings":
        print(ceilings.as_text(ceilings.ceilings(arguments.device, arguments.dtypes, arguments.out, again=True)))
    else:
        importlib.import_module(f".{job}", __package__).run(arguments)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Every mistake that can be seen before anything runs."""
    from .cases import CASES, OPERATORS
    from .providers import table as providers_table

    if importlib.util.find_spec("tqdm") is None:
        raise UserError('tqdm is not installed. Get it with: pip install "lgf-kernels[bench]"')
    known = (*OPERATORS, *CASES, *JOBS)
    if unknown := [what for what in arguments.what if what not in known]:
        raise UserError(f"there is no operator, case or job {unknown[0]!r}; choose from {', '.join(known)}.")
    if unknown := [name for name in arguments.providers or () if name not in providers_table()]:
        raise UserError(f"there is no provider {unknown[0]!r}; choose from {', '.join(providers_table())}.")
    if arguments.rounds < 2:
        raise UserError(f"--rounds must be at least 2 to give a median and a spread, got {arguments.rounds}.")
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        raise UserError(f"--threads must be 1 to {MOST_THREADS}, got {arguments.threads}.")
    if not arguments.minutes >= 0:
        raise UserError(f"--minutes must not be negative, got {arguments.minutes:g}.")
    if arguments.clock == "cpu" and (arguments.device != "cpu" or arguments.threads != 1):
        raise UserError("--clock cpu adds up the time of all threads of a CPU: it needs --device cpu and --threads 1.")
    if arguments.window % 2 == 0 or not 1 <= arguments.window <= 15:
        raise UserError(f"--window must be odd, 1 to 15, got {arguments.window}.")
    if arguments.resume and not arguments.out:
        raise UserError("--resume looks for what is there already in --out: name that folder too.")
    if isinstance(arguments.out, Path):
        if arguments.out.is_file():
            raise UserError(f"--out {arguments.out} is a file. Name a folder.")
        if str(arguments.out) in known:
            raise UserError(
                f"--out took {str(arguments.out)!r} for its folder: put what to measure before the options."
            )
    if why_not := why_not_device(arguments.device):
        raise UserError(why_not)


def why_not_device(device: str) -> str | None:
    import torch

    kind, _, index = device.partition(":")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
        return f"--device must be cpu, cuda or cuda:N, got {device!r}."
    if kind == "cuda" and not torch.cuda.is_available():
        return "--device cuda: torch sees no CUDA device here; `lgf doctor` says what it sees."
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0."
    return None


def chosen_cases(arguments: argparse.Namespace) -> "dict[str, Case]":
    from .cases import CASES, OPERATORS

    if arguments.shapes:
        return dict(_own_cases(arguments))
    cpu = arguments.device == "cpu"
    asked = arguments.what or OPERATORS
    return {
        name: case
        for name, case in CASES.items()
        if name in asked or (case.operator in asked and not (cpu and case.large))
    }


def _own_cases(arguments: argparse.Namespace):
    from .cases import OPERATORS, own_case, why_not_shape

    if wrong := [what for what in arguments.what if what not in OPERATORS]:
        raise UserError(f"--shapes goes with an operator, not with {wrong[0]!r}; choose from {', '.join(OPERATORS)}.")
    for text in arguments.shapes:
        try:
            shape = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"--shapes takes numbers with commas, such as 1,13,30,45,256; got {text!r}.") from None
        by_rank = {4: ["token_relation"], 5: ["lgf_kl"]}.get(len(shape), ["lgf_kl"])
        for operator in arguments.what or by_rank:
            if why_not := why_not_shape(operator, shape):
                raise UserError(f"--shapes {text}: {why_not}.")
            yield own_case(operator, shape, arguments.window)
