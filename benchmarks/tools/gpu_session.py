"""All that a GPU is needed for, in one command and as little time as there is: `make gpu`.

  python benchmarks/tools/gpu_session.py --out DIR --minutes 10

Builds the CUDA module, measures ceilings, checks and times the headline cases, runs tests/gpu, a part of them under
compute-sanitizer, then all other cases, the tuner, peers and `torch.compile`, sweeps and the share of a training step: the most
informative first, each within its part of the time. Whatever is finished is in DIR; the same command again goes on where this
one stopped. DIR is ready to be committed under benchmarks/results.
"""

import here  # isort: skip

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from lgf_bench import ceilings, results
from lgf_bench.checkout import ROOT, commit, environment
from lgf_bench.table import TERMINAL, baseline, milliseconds, number, of_floor, ratio, tabulated
from lgf_cli.errors import UserError

STATE = "session.json"
TESTS = "tests.log"
#: A step with less time than this is not begun: importing torch and starting CUDA take most of it.
LEAST_SECONDS = 15
#: The tests for compute-sanitizer, which slows kernels down ten to a hundred times.
SANITIZED = "(native or triton) and (windows or panels or bfloat16 or float32) and not forward"
#: What compute-sanitizer ends with if it finds an error; pytest's own codes are 0 to 5.
SANITIZER_ERROR = 99
#: What a process told to stop gets to put things down, in seconds.
GRACE = 10


class Step(NamedTuple):
    """`command(seconds left, folder)` returns what to run; `share`: of the whole time, at most."""

    name: str
    command: Callable[[float, Path], list[str]]
    share: float = 1.0


LGF = (sys.executable, "-P", "-m", "lgf_cli")


def bench(*arguments: str) -> Callable[[float, Path], list[str]]:
    """Return a step of `lgf bench` on the GPU, which ends by itself when its time is over and goes on where it stopped."""
    return lambda seconds, folder: [*LGF, "bench", *arguments, *_resumed(seconds, folder)]


def _resumed(seconds: float, folder: Path) -> list[str]:
    return ["--device", "cuda", "--out", str(folder), "--resume", "--minutes", f"{seconds / 60:.2f}"]


def doctor(seconds: float, folder: Path) -> list[str]:
    return [*LGF, "doctor", "--json"]


def build(seconds: float, folder: Path) -> list[str]:
    """Build the CUDA module, and fail if there is none in the end."""
    return ["env", "LGF_CUDA=on", sys.executable, "setup.py", "build_ext", "--inplace"]


def tune(seconds: float, folder: Path) -> list[str]:
    script = str(here.ROOT / "benchmarks" / "tools" / "tune.py")
    return [sys.executable, "-P", script, "--rounds", "15", *_resumed(seconds, folder)]


def report(seconds: float, folder: Path) -> list[str]:
    return [*LGF, "bench", "report", "--out", str(folder)]


def tests(seconds: float, folder: Path) -> list[str]:
    """Run tests/gpu, without those that have passed already."""
    log = folder / TESTS
    passed = re.findall(r"^(tests/.+?) PASSED", log.read_text(), re.MULTILINE) if log.exists() else []
    skip = folder / "tests.passed"
    results.write(skip, "".join(f"--deselect={test}\n" for test in passed))
    return [sys.executable, "-P", "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", f"@{skip}"]


def sanitizer(tool: str) -> Callable[[float, Path], list[str]]:
    """Return the step of the tests that reach every kernel, under a tool of compute-sanitizer."""

    def command(seconds: float, folder: Path) -> list[str]:
        pytest = [sys.executable, "-P", "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "-k", SANITIZED]
        return [*under(tool), *pytest]

    return command


def under(tool: str) -> list[str]:
    """Return the words before a command that put our kernels, and only ours, under a tool of compute-sanitizer.

    All their names hold "lgf". torch's allocator keeps no memory, so that the end of a tensor is the end of an allocation,
    past which nobody may read. Calls of CUDA that fail are no finding: torch and the driver make some to see what there is,
    and our launchers raise an error for each of theirs.
    """
    ours = ["--kernel-name", "kns=lgf", "--report-api-errors", "no", "--error-exitcode", str(SANITIZER_ERROR)]
    return ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool, *ours]


HEADLINE = ("cogvideox-latent", "cogvideox-latent-cached", "moalign-24x150", "videorepa-24x150")
QUICK = ("eager", "eager-unfold", "bmm", "chunked", "native", "triton", "portable")
STEPS = (
    Step("doctor", doctor, 0.1),
    Step("build", build, 0.3),
    Step("ceilings", bench("ceilings", "--dtypes", "bfloat16", "float32"), 0.1),
    Step("headline", bench(*HEADLINE, "--measure", "memory", "overhead", "--providers", *QUICK), 0.25),
    Step("tests", tests, 0.35),
    Step("memcheck", sanitizer("memcheck"), 0.2),
    Step("racecheck", sanitizer("racecheck"), 0.2),
    Step("cases", bench("--measure", "memory", "--rounds", "7", "--providers", *QUICK), 0.3),
    Step("tune", tune, 0.3),
    Step("peers", bench(*HEADLINE), 0.4),
    Step("sweeps", bench("sweeps", "--rounds", "5"), 0.3),
    Step("step", bench("step", "--config", "5b", "--rounds", "3"), 0.3),
    Step("step-tiny", bench("step", "--rounds", "5"), 0.1),
    Step("report", report, 0.1),
)


class Session:
    """Steps run in order within a budget of seconds, and a record in the folder of which are done, at which commit."""

    def __init__(self, steps, folder: Path, seconds: float, commit: str, execute: Callable, clock=time.monotonic):
        self.steps, self.folder, self.seconds, self.commit = steps, folder, seconds, commit
        self.execute, self.clock = execute, clock
        self.begun = clock()
        self.state = self._read()
        if self.state.get("commit") != commit:
            self.state = {"commit": commit, "steps": {}}
            for step in steps:  # which tests another commit has passed says nothing of this one
                (folder / f"{step.name}.log").unlink(missing_ok=True)

    def run(self) -> None:
        for step in self.steps:
            if self.state["steps"].get(step.name, {}).get("status") == "done":
                print(f"{step.name}: done before", flush=True)
                continue
            left = self.seconds - (self.clock() - self.begun)
            if left < LEAST_SECONDS:
                print(f"{step.name}: not begun, the time is over", flush=True)
                continue
            self._run(step, min(left, step.share * self.seconds))

    def _run(self, step: Step, limit: float) -> None:
        print(f"{step.name}: at most {limit:.0f} s ...", flush=True)
        start = self.clock()
        code = self.execute(step, limit, self.folder)
        status = "stopped" if code is None else "done" if code == 0 else "failed"
        self.state["steps"][step.name] = {"status": status, "seconds": round(self.clock() - start, 1), "code": code}
        results.write(self.folder / STATE, json.dumps(self.state, indent=2) + "\n")
        print(f"{step.name}: {status} after {self.clock() - start:.0f} s", flush=True)

    def _read(self) -> dict:
        try:
            return json.loads((self.folder / STATE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}


def execute(step: Step, limit: float, folder: Path) -> int | None:
    """Run a step in a process group of its own, its output added to a log: its exit code, or None if it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{step.name}.log", "ab") as log:
        process = subprocess.Popen(
            step.command(limit, folder), cwd=ROOT, env=variables(),
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(process)


def variables() -> dict[str, str]:
    """Return the environment of a step: Python imports this checkout, and CUDA's tools are found even if not on PATH."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(cuda)])
    return environment() | {"PATH": path, "PYTHONUNBUFFERED": "1"}


def heed_signals() -> None:
    """End the running step too when this is told to end, by a signal or by Ctrl-C.

    This undoes `nohup` and `&` in a script, which have Ctrl-C ignored: steps would inherit that and could only be killed, and
    the compilers that they had started would run on into the times of the next.
    """
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)


def _stop(process: subprocess.Popen) -> None:
    """End a process and all that it started: asked first, then without asking."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def summary(folder: Path, state: dict) -> str:
    """Return a short table: what ran, what the tests say, the fastest of each case."""
    lines = ["", "steps: " + ", ".join(f"{name} {it['status']}" for name, it in state["steps"].items())]
    for name in ("tests", "memcheck", "racecheck"):
        lines += [f"{name}: {line}" for line in _last_line(folder / f"{name}.log")]
    by_case = {}
    for row in ceilings.with_floors(results.latest(results.read(folder / results.LOSSES)), folder):
        by_case.setdefault((row["case"], row["dtype"]), []).append(row)
    if by_case:
        lines.append(tabulated([_fastest(rows) for rows in by_case.values()], TERMINAL, left=3))
    lines += [
        f"{case}, {dtype}: {row['provider']} is WRONG or failed, see {folder.name}"
        for (case, dtype), rows in by_case.items()
        for row in rows
        if row["status"] in ("wrong", "failed")
    ]
    lines.append(f"everything is in {folder}; commit it under benchmarks/results and run `lgf bench report`")
    return "\n".join(lines)


def _fastest(rows: list[dict]) -> dict[str, str]:
    cells = {"case": rows[0]["case"], "type": rows[0]["dtype"], "fastest": "no provider gives the right answer"}
    best = min((row for row in rows if "both" in row), key=lambda row: row["both"]["median_ms"], default=None)
    if best is None:
        return cells | {"time": "", "ratio": "", "of floor": ""}
    against = baseline(rows)
    return cells | {
        "fastest": best["provider"],
        "time": milliseconds(best["both"]["median_ms"]),
        "ratio": f"{number(ratio(best, against), '.2f', 'x')} vs {against['provider']}" if against else "",
        "of floor": number(of_floor(best), ".1f", " %"),
    }


def _last_line(log: Path) -> list[str]:
    lines = [line.strip("= \n") for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    return lines[-1:]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder for everything (default: benchmarks/results/<device>)")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device here; `lgf doctor` says what it sees.", file=sys.stderr)
        return 2
    if not (ROOT / "setup.py").exists():
        print("make gpu: runs in a checkout of the repository.", file=sys.stderr)
        return 2
    if not 1 <= arguments.minutes <= 24 * 60:
        print(f"make gpu: --minutes must be 1 to 1440, got {arguments.minutes:g}.", file=sys.stderr)
        return 2
    folder = (arguments.out or results.device_folder("cuda")).resolve()
    session = Session(STEPS, folder, 60 * arguments.minutes, commit(), execute)
    heed_signals()
    try:
        session.run()
    except KeyboardInterrupt:
        print("\nmake gpu: interrupted; the same command goes on from here.", file=sys.stderr)
    except UserError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    print(summary(folder, session.state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
