"""What the kernels wait for on this GPU, by Nsight Compute's counters.

  python benchmarks/tools/kernel_profile.py --out DIR                     the cases that have targets
  python benchmarks/tools/kernel_profile.py --out DIR cogvideox-latent    a case of yours

Forward and backward of each GPU backend run once to compile and once with counters, a process for each case. DIR/CASE.ncu-rep
is for Nsight Compute, DIR/CASE.csv has every counter, and a table of the kernels in the order in which they ran is printed. In
it, "issue", "shared", "L2" and "memory" are shares of what the GPU can do at most; the largest says what limits a kernel. If all
are small it waits, and "stalls" are the waits that cost most, in warps for each instruction. "us" is with counters, one run:
`lgf bench` has the times. Compare with `kernel_counts.py`, which has the same resources without a GPU.
"""

import here  # isort: skip

if __name__ == "__main__":  # before the imports, so that an error of one line names a missing package
    import sys

    from lgf_cli.main import imported

    sys.exit(imported("kernel_profile.py", "kernel_profile", "tabulate").main())

import argparse
import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from gpu_steps import TARGETS, variables
from lgf_bench.correctness import TOLERANCE, step
from lgf_bench.families import CASES
from lgf_bench.providers import offered, provider
from lgf_bench.table import TERMINAL, tabulated
from lgf_cli.errors import UserError

BACKENDS = ("native", "triton")
SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats",
    "InstructionStats", "Occupancy", "LaunchStats",
)  # fmt: skip
STALL, PER_ISSUE = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
#: Column of the table -> counter, factor, decimals.
COLUMNS = {
    "us": ("gpu__time_duration.sum", 1e-3, 1),
    "issue %": ("smsp__issue_active.avg.per_cycle_active", 100, 0),
    "shared %": ("l1tex__throughput.avg.pct_of_peak_sustained_active", 1, 0),
    "L2 %": ("lts__throughput.avg.pct_of_peak_sustained_elapsed", 1, 0),
    "memory %": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", 1, 0),
    "M instructions": ("smsp__inst_executed.sum", 1e-6, 1),
    "warps %": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1, 0),
    "registers": ("launch__registers_per_thread", 1, 0),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of `lgf bench` (default: {' '.join(TARGETS)})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder for reports and counters")
    parser.add_argument("--dtype", default="bfloat16", choices=TOLERANCE, help="(default: %(default)s)")
    parser.add_argument("--run", action="store_true", help="run the cases as ncu is to see them, without it")
    given = parser.parse_args(argv)
    cases = given.cases or TARGETS
    try:
        if unknown := [name for name in cases if name not in CASES]:
            raise UserError(f"there is no case {unknown[0]!r}; `lgf bench --help` lists them.")
        if not torch.cuda.is_available():
            raise UserError("torch sees no CUDA device here; `lgf doctor` says what it sees.")
        for name in cases:
            run(name, given.dtype) if given.run else profile(name, given)
    except UserError as error:
        print(f"kernel_profile.py: {error}", file=sys.stderr)
        return 2
    return 0


def run(name: str, dtype: str, device: str = "cuda") -> None:
    """Run a case by each backend that can, once to compile and once between the marks that ncu waits for."""
    case = replace(CASES[name], dtype=dtype, device=device)
    reasons = offered(case)
    for backend in BACKENDS:
        if reason := reasons[backend]:
            print(f"{name}: {backend} is left out: {reason}", file=sys.stderr)  # ncu's words go to standard output
            continue
        loss, inputs = provider(backend, case), case.inputs()
        step(loss, inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        step(loss, inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def profile(name: str, given: argparse.Namespace) -> None:
    """Run a case under ncu, keep its report and its counters, and print the table."""
    if given.out is None:
        raise UserError("name a folder for the reports: --out DIR.")
    if given.out.is_file():
        raise UserError(f"--out {given.out} is a file. Name a folder.")
    if not shutil.which("ncu", path=variables()["PATH"]):
        raise UserError("ncu is not on PATH; it comes with Nsight Compute, in CUDA's toolkit.")
    given.out.mkdir(parents=True, exist_ok=True)
    report = given.out.resolve() / f"{name}.ncu-rep"  # ncu runs in the checkout
    report.unlink(missing_ok=True)  # ncu leaves it as it is if there is nothing to profile
    said = called(under_ncu(report, [sys.executable, __file__, name, "--run", "--dtype", given.dtype]))
    if not report.exists():
        raise UserError(f"ncu has profiled no kernel of {name}:\n{said}")
    text = called(["ncu", "--import", str(report), "--page", "raw", "--csv", "--print-units", "base"])
    report.with_suffix(".csv").write_text(text)
    print(f"{name}, {given.dtype}\n{tabulated([cells(row) for row in kernels(text)], TERMINAL)}\n", flush=True)


def under_ncu(report: Path, command: list[str]) -> list[str]:
    """Return the command under ncu: our kernels alone, all of whose names hold "lgf", at the clocks that the GPU has."""
    ours = ["--kernel-name-base", "mangled", "--kernel-name", "regex:lgf"]
    sections = [word for section in SECTIONS for word in ("--section", section)]
    marks = ["--profile-from-start", "off", "--clock-control", "none"]
    return ["ncu", "--force-overwrite", "--export", str(report), *marks, *ours, *sections, *command]


def called(command: list[str]) -> str:
    """Return what a command prints; its errors pass through."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=variables(), cwd=here.ROOT)
    if done.returncode:
        raise UserError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def kernels(text: str) -> list[dict[str, str]]:
    """Return counter -> value for each kernel, from ncu's "raw" page; a row of units stands below the header."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    return [row for row in csv.DictReader(lines) if row["ID"]]


def cells(row: dict[str, str]) -> dict[str, str]:
    """Return a row of the table; a counter that this ncu does not have is left empty."""
    shown = {"kernel": short(row["Kernel Name"])}
    for title, (counter, factor, decimals) in COLUMNS.items():
        value = number(row.get(counter, ""))
        shown[title] = "" if value is None else f"{factor * value:.{decimals}f}"
    waits = {
        counter.removeprefix(STALL).removesuffix(PER_ISSUE): number(value)
        for counter, value in row.items()
        if counter.startswith(STALL) and counter.endswith(PER_ISSUE)
    }
    waits.pop("selected", None)  # those are no wait: the instruction is issued
    most = sorted((it for it in waits.items() if it[1]), key=lambda it: -it[1])[:3]
    return shown | {"stalls": ", ".join(f"{reason} {warps:.1f}" for reason, warps in most)}


def short(kernel: str) -> str:
    """Return a demangled name without its arguments, the casts in those of its template, and our namespace."""
    without_casts = re.sub(r"\([a-z_ ]+\)(?=[-\w])", "", kernel)
    return without_casts.split("(")[0].removeprefix("void ").replace("lgf::", "")


def number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
