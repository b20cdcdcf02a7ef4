"""Time and memory of the losses on this machine's CPU, next to what one would run instead.

  lgf bench                                 every case, every provider
  lgf bench moalign-24x150 --rounds 30      one case, closer
  lgf bench --providers eager portable      some providers
  lgf bench --out results.jsonl             keep the numbers

Each answer is checked against the oracle in float64 before it is timed; a wrong one is shown as wrong and timed no
further. Times are medians of forward and backward over interleaved runs, [lower .. upper quartile]; ratios come from the
same run. Memory is what a fresh process needs at its peak beyond the inputs and the gradient.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from .. import __version__
from ..doctor import cpu_name
from .cases import CASES
from .measure import errors, interleaved, peak_memory, spread, truth
from .providers import BASELINES, provider, providers

#: An answer is right if its relative errors are at most these: loss and gradient.
TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (1e-2, 2e-2), "float16": (1e-2, 2e-2)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases = "\n".join(f"{name}: {case.about}" for name, case in CASES.items())
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all\n{cases}")
    parser.add_argument(
        "--providers", nargs="+", metavar="NAME",
        help="default: all that run here\n" + "\n".join(f"{name}: {about}" for name, about in BASELINES.items())
        + "\nnative, portable: the backends of this library",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=TOLERANCE, default="float32", help="of student and teachers (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each provider (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: torch's)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory measurements")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the numbers to FILE as JSON lines")


def run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("tqdm") is None:
        raise SystemExit('lgf bench: tqdm not installed. Get it with: pip install "lgf-kernels[bench]"')
    if unknown := [name for name in arguments.cases if name not in CASES]:
        raise SystemExit(f"lgf bench: there is no case {unknown[0]!r}; choose from {', '.join(CASES)}.")
    if arguments.rounds < 2:
        raise SystemExit(
            f"lgf bench: --rounds must be at least 2 to give a median and a spread, got {arguments.rounds}."
        )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in arguments.cases or CASES:
        rows = measure_case(name, arguments)
        print(table(name, rows), flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            with arguments.out.open("a") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


def measure_case(name: str, arguments: argparse.Namespace) -> list[dict]:
    """One row of numbers for each provider of a case."""
    from tqdm import tqdm

    case = replace(CASES[name], dtype=arguments.dtype)
    here = providers(case)
    chosen = arguments.providers or here
    if unknown := [p for p in chosen if p not in here]:
        raise SystemExit(f"lgf bench: {unknown[0]!r} does not run {name} here; choose from {', '.join(here)}.")

    def progress(items, doing: str):
        return tqdm(items, desc=f"{name}: {doing}", leave=False)

    rows, losses = {}, {}
    true_value, true_gradient = truth(case)
    for p in progress(chosen, "checking the answers"):
        loss = provider(p, case)
        off = errors(loss, case, true_value, true_gradient)
        right = all(error <= limit for error, limit in zip(off, TOLERANCE[case.dtype], strict=True))
        rows[p] = {
            "case": name,
            "dtype": case.dtype,
            "provider": p,
            "right": right,
            "loss_error": off[0],
            "gradient_error": off[1],
        }
        if right:
            losses[p] = loss
    for p, seconds in interleaved(losses, case, arguments.rounds, lambda r: progress(r, "timing")).items():
        rows[p] |= spread(seconds)
    if not arguments.no_memory:
        for p in progress(losses, "measuring memory"):
            rows[p]["peak_bytes"] = peak_memory(case, p)
    return [row | provenance(arguments) for row in rows.values()]


def provenance(arguments: argparse.Namespace) -> dict:
    """Where and from what the numbers come."""
    return {
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "lgf_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def commit() -> str | None:
    """The commit of the checkout that runs, "-dirty" if the library's code differs from it; None outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)

    head = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--", root / "lgf_kernels", root / "csrc").stdout
    return head.stdout.strip() + ("-dirty" if changed else "") if head.returncode == 0 else None


def table(name: str, rows: list[dict]) -> str:
    """The rows of a case for a terminal, with ratios to the plain eager form."""
    eager = next((row for row in rows if row["provider"] == "eager" and "median_ms" in row), None)
    lines = [
        f"\n{name}: {CASES[name].about}",
        f"student {CASES[name].shape}, teachers {CASES[name].teacher_channels}, {rows[0]['dtype']}, {rows[0]['threads']} threads",
        f"  {'provider':<14}{'forward + backward':>30}{'vs eager':>10}{'peak memory':>13}{'loss err':>10}{'grad err':>10}",
    ]
    for row in rows:
        if row["right"]:
            time = f"{row['median_ms']:.1f} ms [{row['low_ms']:.1f} .. {row['high_ms']:.1f}]"
            ratio = f"{eager['median_ms'] / row['median_ms']:.2f}x" if eager else ""
        else:
            time, ratio = "WRONG ANSWER, not timed", ""
        peak = row.get("peak_bytes")
        memory = "" if peak is None else f"{peak / 2**20:.1f} MiB"
        lines.append(
            f"  {row['provider']:<14}{time:>30}{ratio:>10}{memory:>13}{row['loss_error']:>10.0e}{row['gradient_error']:>10.0e}"
        )
    return "\n".join(lines)
