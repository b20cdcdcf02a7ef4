"""Everything that needs a GPU, in one command and a given number of minutes: `make gpu`.

  python3 benchmarks/tools/gpu_session.py --out DIR --minutes 9
  python3 benchmarks/tools/gpu_session.py --dry-run       the plan, and what of it this machine lacks

Builds the CUDA module, runs the tests of what only a GPU can tell, verifies every backend, measures ceilings, checks and times
the headline cases, runs the other tests, a part of them under compute-sanitizer, then the cases that have targets, the kernels'
counters, all other cases, the tuner, peers and `torch.compile`, sweeps and the share of a training step of CogVideoX and of Wan:
the most informative first, each within its part of the time.

It installs nothing and needs neither git nor a network: of Python packages torch and pytest, tqdm and tabulate to measure, and
nvcc with pybind11. Whatever is finished is in DIR and in DIR.tar.gz, from which the same command goes on, on another machine as
well. --minutes counts from the start of Python to the archive. DIR is ready to be committed under benchmarks/results.
"""

import here  # isort: skip

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from gpu_steps import STEPS, Step, variables
from lgf_bench import ceilings, results
from lgf_bench.checkout import ROOT, commit
from lgf_cli.errors import UserError

from lgf_kernels.core.files import whole_file

STATE = "session.json"
#: A step with less time than this is not begun: importing torch and starting CUDA take most of it.
LEAST_SECONDS = 15
#: Seconds from SIGINT to SIGKILL for a step that is stopped.
GRACE = 10
#: Seconds kept for the end of the last step, the summary and the archive.
FINISH = 15


class Session:
    """Run of steps in order until a deadline, with a record in the folder of which are done.

    `code`: the code and the device that run. With others all begins anew, and a step is done again if other backends are
    there than when it ran.
    """

    def __init__(self, steps, folder: Path, end: float, code: dict, execute: Callable, clock=time.monotonic):
        self.steps, self.folder, self.end = steps, folder, end
        self.execute, self.clock = execute, clock
        self.seconds = end - clock()
        self.state = self._read()
        if {key: self.state.get(key) for key in code} != code:
            self.state = code | {"steps": {}}
            for step in steps:  # logs of tests that other code has passed
                (folder / f"{step.name}.log").unlink(missing_ok=True)

    def run(self) -> None:
        for step in self.steps:
            left = self.end - self.clock()
            if not step.always and self._is_done(step):
                print(f"{step.name}: done before", flush=True)
            elif lacking := step.missing():
                self._record(step, {"status": "impossible", "missing": lacking}, f"not begun for want of {lacking}")
            elif left < LEAST_SECONDS:
                print(f"{step.name}: not begun, the time is over", flush=True)
            else:
                self._run(step, min(left, step.share * self.seconds))

    def _is_done(self, step: Step) -> bool:
        record = self.state["steps"].get(step.name, {})
        return record.get("status") == "done" and record.get("backends") == backends(self.folder)

    def _run(self, step: Step, limit: float) -> None:
        print(f"{step.name}: at most {limit:.0f} s ...", flush=True)
        start = self.clock()
        code = self.execute(step, limit, self.folder)
        status, took = "stopped" if code is None else "done" if code == 0 else "failed", self.clock() - start
        record = {"status": status, "seconds": round(took, 1), "code": code, "backends": backends(self.folder)}
        self._record(step, record, f"{status} after {took:.0f} s")

    def _record(self, step: Step, record: dict, said: str) -> None:
        self.state["steps"][step.name] = record
        results.write(self.folder / STATE, json.dumps(self.state, indent=2) + "\n")
        pack(self.folder)
        print(f"{step.name}: {said}", flush=True)

    def _read(self) -> dict:
        try:
            return json.loads((self.folder / STATE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}


def backends(folder: Path) -> dict[str, str]:
    """Return the reason of each backend from `lgf doctor` in this session; empty before it has run."""
    with suppress(OSError, ValueError, KeyError):
        text = (folder / "doctor.log").read_text()
        report, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
        return {row["name"]: row["reason"] for row in report["backends"]}
    return {}


def archive(folder: Path) -> Path:
    """Return the file that holds all of a folder, beside it."""
    return folder.with_name(folder.name + ".tar.gz")


def pack(folder: Path) -> None:
    """Write the archive as a whole: a session that is killed leaves that of the step before."""
    with whole_file(archive(folder)) as file, tarfile.open(fileobj=file, mode="w:gz") as out:
        out.add(folder, folder.name)


def unpack(folder: Path) -> None:
    """Go on from the archive where there is no folder yet."""
    if not folder.exists() and archive(folder).exists():
        with tarfile.open(archive(folder)) as found:
            found.extractall(folder.parent, filter="data")


def execute(step: Step, limit: float, folder: Path) -> int | None:
    """Run a step in a process group of its own, its output in a log: its exit code, or None if it was stopped."""
    with open(folder / f"{step.name}.log", "wb" if step.always else "ab") as log:
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


def plan(steps: tuple[Step, ...], seconds: float) -> tuple[str, bool]:
    """Return the steps with their estimates as text, and whether this machine has what all of them need."""
    lines, before, whole = [], 0.0, True
    for step in steps:
        lacking = step.missing()
        whole = whole and not lacking
        at_most = min(step.share * seconds, max(seconds - before, 0))
        begins = f"begins after {before:4.0f} s" if before < seconds else "needs another session"
        lines.append(
            f"{step.name:<16}{begins:<23}takes about {step.estimate:4.0f} s, at most {at_most:4.0f} s"
            + (f"; LACKS {', '.join(lacking)}" if lacking else "")
        )
        before += 0 if lacking else min(step.estimate, step.share * seconds)
    return "\n".join(lines), whole


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at SIGTERM and SIGINT, which ends the running step too.

    `nohup` and `&` in a script have SIGINT ignored: steps would inherit that and could only be killed, and the compilers
    that they had started would run during the measurements of the next.
    """
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)


def _stop(process: subprocess.Popen) -> None:
    """End a process and all that it started, by SIGINT and then by SIGKILL."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def summary(folder: Path, state: dict) -> str:
    """Return a short table: what ran, what the tests say, the fastest of each case."""
    lines = ["", "steps: " + ", ".join(f"{name} {it['status']}" for name, it in state["steps"].items())]
    for name in ("device-tests", "verify", "tests", "memcheck", "racecheck"):
        lines += [f"{name}: {line}" for line in _last_line(folder / f"{name}.log")]
    by_case = {}
    for row in ceilings.with_floors(results.latest(results.read(folder / results.LOSSES)), folder):
        by_case.setdefault((row["case"], row["dtype"]), []).append(row)
    if by_case:
        with suppress(ModuleNotFoundError):  # of tables, without which nothing is measured on this machine either
            lines.append(_table(by_case.values()))
    lines += [
        f"{case}, {dtype}: {row['provider']} is WRONG or failed, see {folder.name}"
        for (case, dtype), rows in by_case.items()
        for row in rows
        if row["status"] in ("wrong", "failed")
    ]
    lines.append(f"everything is in {folder} and {archive(folder).name}")
    lines.append("commit the folder under benchmarks/results and run `lgf bench report`")
    return "\n".join(lines)


def _table(cases: Iterable[list[dict]]) -> str:
    """Return the fastest of each case."""
    from lgf_bench.table import TERMINAL, tabulated  # here, so that a session begins without the packages of the bench

    return tabulated([_fastest(rows) for rows in cases], TERMINAL, left=3)


def _fastest(rows: list[dict]) -> dict[str, str]:
    from lgf_bench.table import baseline, milliseconds, number, of_floor, ratio

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
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (default: %(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan; the exit code is 1 if anything is missing"
    )
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.minutes <= 24 * 60:
        return refused(f"--minutes must be 1 to 1440, got {arguments.minutes:g}.")
    if not (ROOT / "setup.py").exists():
        return refused("runs in a checkout of the repository.")
    end = here.BEGUN + 60 * arguments.minutes - FINISH
    if arguments.dry_run:
        text, whole = plan(STEPS, 60 * arguments.minutes - FINISH)
        print(text)
        return int(not whole)
    if not torch.cuda.is_available():
        return refused("torch sees no CUDA device here; `lgf doctor` says what it sees.")
    folder = (arguments.out or results.device_folder("cuda")).resolve()
    unpack(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code = {"commit": commit(), "device": results.device_name("cuda")}
    session = Session(STEPS, folder, end, code, execute)
    interrupt_on_signals()
    try:
        session.run()
    except KeyboardInterrupt:
        print("\nmake gpu: interrupted; the same command goes on from here.", file=sys.stderr)
    except UserError as error:
        return refused(str(error))
    finally:
        pack(folder)
    print(summary(folder, session.state))
    return 0


def refused(reason: str) -> int:
    print(f"make gpu: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
