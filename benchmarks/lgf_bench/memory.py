"""Peak memory of one forward and backward beyond its inputs, its output and the gradient.

On a CPU in a fresh process, as the rise of its high-water mark; on a GPU as the peak of torch's allocator.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch

from .cases import Case
from .correctness import step
from .providers import provider, table


def peak_memory(case: Case, name: str, function: Callable | None = None) -> int | None:
    """Bytes; None where the operating system does not tell (CPUs on anything but Linux).

    `function`: the provider's, if it is at hand; used on GPUs, where no fresh process is needed.
    """
    if torch.device(case.device).type == "cuda":
        return _allocator_peak(case, function or provider(name, case))
    job = json.dumps({"case": asdict(case), "provider": name, "threads": torch.get_num_threads()})
    done = subprocess.run([sys.executable, "-m", __name__, job], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rise(action: Callable[[], object], device: str) -> int | None:
    """Bytes by which memory in use exceeds, at its peak within the action, what is in use before."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _return_free_memory()
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")  # the high-water mark restarts from here
        before = _high_water_mark()
        action()
        return _high_water_mark() - before
    except OSError:
        return None


def _one_step(case: Case, function: Callable) -> int | None:
    """The rise within a step, less what it is for: output and gradient."""
    student, teachers, upstream = case.inputs()
    outputs = []
    peak = rise(lambda: outputs.append(step(function, student, teachers, upstream)), case.device)
    return peak and max(peak - outputs[0].nbytes - student.grad.nbytes, 0)


def _allocator_peak(case: Case, function: Callable) -> int:
    step(function, *case.inputs())
    return _one_step(case, function)


def _high_water_rise(case: Case, name: str) -> int | None:
    # Everything that is allocated once and kept (libraries, thread pools, compiled code) comes before the measurement.
    warm_up = case if table()[name].compiles else case.smallest()
    function = provider(name, warm_up)
    step(function, *warm_up.inputs())
    return _one_step(case, function if warm_up is case else provider(name, case))


def _return_free_memory() -> None:
    """Give what the allocator holds free back to the system: reusing it would not show in the high-water mark."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _high_water_mark() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _of_job(text: str) -> int | None:
    """In the fresh process, what `peak_memory` asked of it."""
    job = json.loads(text)
    torch.set_num_threads(job["threads"])
    case = job["case"] | {key: tuple(job["case"][key]) for key in ("shape", "teacher_channels")}
    return _high_water_rise(Case(**case), job["provider"])


if __name__ == "__main__":
    print(json.dumps(_of_job(sys.argv[1])))
