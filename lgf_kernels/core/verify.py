"""Proof of a backend on the machine where it runs: its answers and its time on a small case, kept in a file.

Compiled kernels depend on device, driver and compiler. One that has answered wrongly, or not at all, on this device must not be
chosen unasked, so the first call of each kind compares it with the portable backend, once, and keeps the verdict:

    {XDG_CACHE_HOME or ~/.cache}/lgf_kernels/verified/<digest of what the verdict depends on>.json

One file a verdict, replaced as a whole: processes that check the same thing at the same time write the same file. A folder that
cannot be written means that each process checks anew. The variable LGF_VERIFY changes this:

    off      choose without a check, in the order of preference
    force    check anew in this process, whatever is kept
"""

import functools
import hashlib
import json
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import write_whole

#: Largest relative error by norm of a right answer. A wrong kernel is off by far more; a gradient of token relations, which jumps
#: where two features agree, by up to 1e-2 in any type.
TOLERANCE = 3e-2
#: Timed runs of a right backend; the shortest counts.
RUNS = 5
#: Clock cycles for which a GPU is kept busy before a timed run, about 10 ms: the host enqueues the whole run in that time.
HEAD_START = 20_000_000
MODES = ("off", "force")


class Verdict(NamedTuple):
    """What a check found.

    seconds    of a forward and backward on the larger case, infinite for a backend that is not right
    answered   False for a backend that raised, or was not checked: the next process tries again, as memory may have been short
    """

    right: bool
    reason: str
    seconds: float = float("inf")
    answered: bool = True


#: A case of an operator: runs it on a backend, by name, and returns the tensors to compare.
Case = Callable[[str], Sequence[Tensor]]

#: By call, without its shape, and backend: every call of an operator looks here.
_verdicts: dict[tuple, Verdict] = {}
_lock = threading.Lock()


def mode() -> str | None:
    """Return the value of LGF_VERIFY, or None."""
    value = os.environ.get("LGF_VERIFY") or None
    if value not in (None, *MODES):
        raise ValueError(
            f"the variable LGF_VERIFY must be one of {', '.join(map(repr, MODES))}, or not set; got {value!r}."
        )
    return value


def verdict(call: NamedTuple, backend: str, small: Callable[[], Case], large: Callable[[], Case]) -> Verdict:
    """Return the verdict on a backend for calls of this kind: the one that is kept, or that of a check.

    Args:
        call: what the verdict is of (`registry.Call`); its shape is not part of it.
        small, large: build a ragged case to compare and a larger one to time, with the options of the call.
    """
    if mode() == "off":
        return Verdict(True, "not checked: LGF_VERIFY=off", 0.0)
    kind = (call._replace(shape=None), backend)
    if kind not in _verdicts:
        with _lock:
            if kind not in _verdicts:
                if reason := impossible_reason(call.device):
                    return Verdict(False, reason, answered=False)
                _verdicts[kind] = kept_or_new(call, backend, small, large)
    return _verdicts[kind]


def kept_or_new(call: NamedTuple, backend: str, small: Callable[[], Case], large: Callable[[], Case]) -> Verdict:
    """Return the verdict in the file, or check, warn of a backend that fails, and keep the verdict."""
    key = key_of(call, backend)
    if mode() != "force" and (kept := read(key)):
        return kept
    found = in_a_thread_of_its_own(lambda: check(call, backend, small, large))
    if found.answered:
        write(key, found)
    if not found.right:
        warnings.warn(report(call, backend, found.reason), RuntimeWarning, stacklevel=2)
    return found


def forget() -> None:
    """Forget the verdicts of this process; those in files stay."""
    _verdicts.clear()


def key_of(call: NamedTuple, backend: str) -> str:
    """Return everything that a verdict depends on, as one line of JSON."""
    what = {"operator": call.operator, "backend": backend, "dtype": str(call.dtype), "facts": dict(call.facts)}
    return json.dumps(what | machine(call.device), sort_keys=True, default=str)


@functools.cache
def machine(device: str) -> dict[str, str]:
    """Return what code runs and on what: device, driver, torch, Triton, and the files of the library."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "driver": driver() if cuda else "",
        "torch": torch.__version__,
        "triton": triton_version(),
        "library": digest_of_library(),
    }


def driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        return "unknown"


def triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return ""


def digest_of_library() -> str:
    """Return a digest of the library's code and modules: the version alone does not change with each change of them."""
    whole = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(file for pattern in ("**/*.py", "*.so", "*.pyd") for file in root.glob(pattern)):
        whole.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return whole.hexdigest()


# ---- the check ----------------------------------------------------------------------------------------------------


def impossible_reason(device: str) -> str | None:
    """Return why nothing can be checked now, or None. A check allocates, compiles and waits for the device."""
    if torch.device(device).type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "not checked yet, which is impossible while a CUDA graph is captured: call it once before"
    return None


def in_a_thread_of_its_own(action: Callable[[], Verdict]) -> Verdict:
    """Run where no autocast, grad mode, dispatch mode, transform or stream of the caller applies."""
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(action()), name="lgf verify")
    thread.start()
    thread.join()
    return found[0]


def check(call: NamedTuple, backend: str, small: Callable[[], Case], large: Callable[[], Case]) -> Verdict:
    """Compare a backend with the portable one on the small case, and time it on the large one."""
    try:
        with torch.cuda.device(call.device) if torch.device(call.device).type == "cuda" else nullcontext():
            case = small()
            error = worst_error(case(backend), case("portable"))
            if error <= TOLERANCE:
                return Verdict(True, f"right within {error:.0e}", shortest(large(), backend, call.device))
            return Verdict(False, f"a relative error of {error:.2g} on a small case")
    except Exception as error:  # a compiler or a driver may fail in any way
        return Verdict(False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", answered=False)


def worst_error(given: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Return the largest relative error by norm; infinite where shapes differ or an answer is not finite."""
    errors = [
        (torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(b.double())).item()
        if a.shape == b.shape
        else float("inf")
        for a, b in zip(given, true, strict=True)
    ]
    return max(float("inf") if math.isnan(error) else error for error in errors)


def shortest(case: Case, backend: str, device: str) -> float:
    """Return the shortest time of a run, in seconds; the first run, which compiles, does not count."""
    timed = device_seconds if torch.device(device).type == "cuda" else host_seconds
    return min([timed(lambda: case(backend)) for _ in range(RUNS + 1)][1:])


def host_seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def device_seconds(run: Callable) -> float:
    """Return the time of the kernels alone: launches take longer than small kernels, but in training the host runs ahead."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def report(call: NamedTuple, backend: str, reason: str) -> str:
    return (
        f"lgf_kernels: the {backend} kernels of {call.operator} do not work here and are not used: {reason}. The next backend "
        f"runs instead. Please report this, with the output of `lgf doctor` and: {key_of(call, backend)}"
    )


def pattern(shape: Sequence[int], seed: int, call: NamedTuple) -> Tensor:
    """Return numbers in (-0.5, 0.5) without order, of the call's type and on its device; the same every time.

    Without a random generator, whose state belongs to the caller.
    """
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device=call.device)
    return (((index + 1e4 * seed) * 12.9898).sin() * 43758.5453).frac().div(2).view(shape).to(call.dtype)


# ---- the files ----------------------------------------------------------------------------------------------------


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lgf_kernels", "verified")


def file_of(key: str) -> Path:
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def read(key: str) -> Verdict | None:
    """Return the verdict that is kept, if there is a whole one for this very key."""
    try:
        kept = json.loads(file_of(key).read_text())
        return Verdict(kept["right"], kept["reason"], float(kept["seconds"])) if kept["key"] == key else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def write(key: str, found: Verdict) -> None:
    """Keep a verdict, unless the folder cannot be written or there is no home."""
    try:
        kept = {"key": key, "right": found.right, "reason": found.reason, "seconds": found.seconds}
        write_whole(file_of(key), json.dumps(kept).encode())
    except (OSError, RuntimeError):
        return
