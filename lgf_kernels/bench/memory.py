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


def _allocator_peak(case: Case, function: Callable) -> int:
    inputs = case.inputs()
    output = step(function, *inputs)
    inputs[0].grad = None
    results = output.nbytes + inputs[0].nbytes
    del output
    torch.cuda.reset_peak_memory_stats(case.device)
    before = torch.cuda.memory_allocated(case.device)
    step(function, *inputs)
    return max(torch.cuda.max_memory_allocated(case.device) - before - results, 0)


def _high_water_rise(case: Case, name: str) -> int | None:
    student, teachers, upstream = case.inputs()
    # Everything that is allocated once and kept (libraries, thread pools, compiled code) comes before the measurement.
    warm_up = case if table()[name].compiles else case.smallest()
    function = provider(name, warm_up)
    step(function, *warm_up.inputs())
    if warm_up is not case:
        function = provider(name, case)
    student.grad = None
    _return_free_memory()
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")  # the high-water mark restarts from here
        before = _high_water_mark()
        output = step(function, student, teachers, upstream)
        return max(_high_water_mark() - before - student.grad.nbytes - output.nbytes, 0)
    except OSError:
        return None


def _return_free_memory() -> None:
    """Give what the allocator holds free back to the system: reusing it would not show in the high-water mark."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _high_water_mark() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    case = job["case"] | {key: tuple(job["case"][key]) for key in ("shape", "teacher_channels")}
    print(json.dumps(_high_water_rise(Case(**case), job["provider"])))
