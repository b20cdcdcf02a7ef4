"""Steps of `gpu_session.py`: what each runs, for how long at most, and what it needs."""

import here  # isort: skip

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lgf_bench import results
from lgf_bench.checkout import environment

import lgf_kernels  # noqa: F401  # whose families fill the table of operators
from lgf_kernels.core.registry import families

Command = Callable[[float, Path], list[str]]
TOOLS = here.ROOT / "benchmarks" / "tools"
LGF = (sys.executable, "-P", "-m", "lgf_cli")
#: Tests spend their time compiling: as many processes as there are cores, each of which holds 1 GiB of a GPU.
WORKERS = min(16, os.cpu_count() or 1)
#: The families' tests for compute-sanitizer, which slows kernels down ten to a hundred times.
SANITIZED = "(native or triton) and (windows or panels or bfloat16 or float32) and not forward"
#: Exit code of compute-sanitizer if it finds an error; pytest's own codes are 0 to 5.
SANITIZER_ERROR = 99
GPU_TESTS = sorted(f"tests/gpu/{file.name}" for file in (here.ROOT / "tests" / "gpu").glob("test_*.py"))
DEVICE_TESTS = ("tests/gpu/test_device.py", "tests/gpu/test_token_relation.py")
OTHER_TESTS = tuple(file for file in GPU_TESTS if file not in DEVICE_TESTS)
FAMILIES = tuple(file for file in GPU_TESTS if Path(file).stem.removeprefix("test_") in families())


class Step(NamedTuple):
    """One command of a session.

    command    (seconds left, folder) -> what to run
    share      of the whole time, at most
    estimate   seconds on a data centre's GPU with 16 cores, from compile times measured without one
    packages   that Python must find, and programs that PATH must have
    always     run in every session: what it leaves is on the machine, or of the machine, and not in the folder
    """

    name: str
    command: Command
    share: float = 1.0
    estimate: float = 0.0
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    always: bool = False

    def missing(self) -> list[str]:
        """Return what the step needs and this machine lacks."""
        path = variables()["PATH"]
        packages = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return packages + [name for name in self.programs if shutil.which(name, path=path) is None]


def variables() -> dict[str, str]:
    """Return the environment of a step: Python imports this checkout, and CUDA's tools are found even if not on PATH."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(cuda)])
    return environment() | {"PATH": path, "PYTHONUNBUFFERED": "1"}


def fixed(*words: object) -> Command:
    """Return a command that depends on nothing."""
    return lambda seconds, folder: [str(word) for word in words]


def bench(*arguments: str) -> Command:
    """Return `lgf bench` on the GPU, which ends by itself when its time is over and goes on where it stopped."""
    return lambda seconds, folder: [*LGF, "bench", *arguments, *_resumed(seconds, folder)]


def step_of(model: str) -> Command:
    """Return the share of the loss in a training step of a released model."""
    return bench("step", "--model", model, "--rounds", "3")


def tune(seconds: float, folder: Path) -> list[str]:
    return [sys.executable, str(TOOLS / "tune.py"), "--rounds", "15", *_resumed(seconds, folder)]


def profile(seconds: float, folder: Path) -> list[str]:
    return [sys.executable, str(TOOLS / "kernel_profile.py"), "--out", str(folder / "profile")]


def report(seconds: float, folder: Path) -> list[str]:
    return [*LGF, "bench", "report", "--out", str(folder)]


def _resumed(seconds: float, folder: Path) -> list[str]:
    return ["--device", "cuda", "--out", str(folder), "--resume", "--minutes", f"{seconds / 60:.2f}"]


def tests(name: str, *files: str) -> Command:
    """Return the step `name` of these tests, without those that have passed already."""

    def command(seconds: float, folder: Path) -> list[str]:
        skip = folder / f"{name}.passed"
        results.write(skip, "".join(f"--deselect={test}\n" for test in passed(folder, name)))
        return side_by_side([*_pytest(), f"@{skip}"], files, folder / name)

    return command


def passed(folder: Path, name: str) -> list[str]:
    """Return the tests that the logs of a step say have passed, of pytest in one process or in several."""
    logs = (folder / f"{name}.log", *sorted(folder.glob(f"{name}.*.log")))
    text = "\n".join(log.read_text(errors="replace") for log in logs if log.exists())
    found = re.findall(r"^\[gw\d+\] \[ *\d+%\] PASSED (tests/.+?) *$|^(tests/.+?) PASSED", text, re.MULTILINE)
    return list(dict.fromkeys(several or one for several, one in found))


def _pytest() -> list[str]:
    return [sys.executable, "-P", "-m", "pytest", "-v", "-p", "no:cacheprovider"]


def side_by_side(pytest: list[str], files: tuple[str, ...], step: Path) -> list[str]:
    """Return a command of pytest for files: by the workers of pytest-xdist, without it by a process for each file.

    Each process has a log STEP.FILE.log of its own, because in a common one they would write into each other's lines.
    """
    if importlib.util.find_spec("xdist"):
        return [*pytest, "--numprocesses", str(WORKERS), *files]
    logs = {file: shlex.quote(f"{step}.{Path(file).stem}.log") for file in files}
    begin = " ".join(f'{shlex.join([*pytest, file])} >> {log} 2>&1 & pids="$pids $!";' for file, log in logs.items())
    # 5: every test of the file has passed before.
    wait = "code=0; for pid in $pids; do wait $pid || [ $? = 5 ] || code=1; done"
    return ["sh", "-c", f"{begin} {wait}; cat {' '.join(logs.values())}; exit $code"]


def sanitizer(tool: str) -> Command:
    """Return the tests that reach every kernel, under a tool of compute-sanitizer."""
    return fixed(*under(tool), *_pytest(), *FAMILIES, "-k", SANITIZED)


def under(tool: str) -> list[str]:
    """Return the words before a command that put our kernels, and only ours, under a tool of compute-sanitizer.

    All their names hold "lgf". torch's allocator keeps no memory, so that the end of a tensor is the end of an allocation,
    past which nobody may read. Calls of CUDA that fail are no finding: torch and the driver make some to see what there is,
    and our launchers raise an error for each of theirs.
    """
    ours = ["--kernel-name", "kns=lgf", "--report-api-errors", "no", "--error-exitcode", str(SANITIZER_ERROR)]
    return ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool, *ours]


HEADLINE = ("cogvideox-latent", "cogvideox-latent-cached", "moalign-24x150", "videorepa-24x150", "points-512-13x30x45")
#: The shapes that the kernels have targets for.
TARGETS = (
    "sam2",
    "sam2-cached",
    "cogvideox-latent",
    "cogvideox-latent-cached",
    "videorepa-24x1350-256",
    "points-1024-49x30x45",
)
QUICK = ("eager", "eager-unfold", "bmm", "chunked", "native", "triton", "portable")
VERIFY = fixed(*LGF, "verify", "--device", "cuda", "--jobs", WORKERS)
BENCH, PYTEST, TRITON = ("tqdm", "tabulate"), ("pytest",), ("triton",)
TRAINER = (*BENCH, "diffusers", "peft", "accelerate", "tyro", "pydantic", "yaml", "safetensors")
BUILD = fixed(sys.executable, TOOLS / "build_cuda.py")
SANITIZER = {"packages": PYTEST, "programs": ("compute-sanitizer",)}
#: First the tests of what is seen on a GPU alone, then answers and times of the kernels, then everything else.
STEPS = (
    Step("build", BUILD, 0.35, 90, ("pybind11",), ("nvcc", "c++"), always=True),
    Step("doctor", fixed(*LGF, "doctor", "--json"), 0.1, 15, always=True),
    Step("device-tests", tests("device-tests", *DEVICE_TESTS), 0.3, 75, PYTEST),
    Step("verify", VERIFY, 0.25, 75),
    Step("ceilings", bench("ceilings", "--dtypes", "bfloat16", "float32"), 0.1, 20, BENCH),
    Step("headline", bench(*HEADLINE, "--measure", "memory", "--providers", *QUICK), 0.2, 75, BENCH),
    Step("tests", tests("tests", *OTHER_TESTS), 0.35, 120, PYTEST),
    Step("memcheck", sanitizer("memcheck"), 0.15, 60, **SANITIZER),
    Step("racecheck", sanitizer("racecheck"), 0.15, 60, **SANITIZER),
    Step("targets", bench(*TARGETS, "--measure", "memory", "--providers", *QUICK), 0.2, 60, BENCH),
    Step("profile", profile, 0.25, 90, BENCH, ("ncu",)),
    Step("cases", bench("--measure", "memory", "--rounds", "7", "--providers", *QUICK), 0.3, 240, BENCH),
    Step("tune", tune, 0.3, 300, (*BENCH, *TRITON)),
    Step("peers", bench(*HEADLINE), 0.4, 240, BENCH),
    Step("sweeps", bench("sweeps", "--rounds", "5"), 0.3, 240, BENCH),
    Step("step-cogvideox", step_of("CogVideoX-5B"), 0.3, 120, TRAINER),
    Step("step-wan", step_of("Wan2.1-T2V-1.3B"), 0.3, 120, TRAINER),
    Step("report", report, 0.1, 15, (*BENCH, "matplotlib")),
)
