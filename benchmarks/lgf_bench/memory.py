"""Peak memory of one forward and backward beyond its inputs, its output and the gradients.

On a CPU in a fresh process, as the rise of its high-water mark; on a GPU as the peak of torch's allocator.
"""

import ctypes
import gc
from collections.abc import Callable

import torch

from .correctness import gradients, step
from .families.base import Case
from .processes import in_fresh_process
from .providers import provider, providers


def peak_memory(case: Case, name: str, function: Callable | None = None) -> int | None:
    """Return bytes, or None where the operating system does not tell (CPUs on anything but Linux).

    `function`: the provider's, if it is at hand; used on GPUs, where no fresh process is needed.
    """
    if torch.device(case.device).type == "cuda":
        function = provider(name, case) if function is None else function
        step(function, case.inputs())  # what is allocated once and kept
        return _one_step(case, function)
    try:
        return in_fresh_process(_in_threads, torch.get_num_threads(), case, name)
    except Exception as error:  # whatever ends the process is a case that could not be measured
        raise RuntimeError(f"measuring the memory of {name} failed: {error}") from error


def _in_threads(threads: int, case: Case, name: str) -> int | None:
    torch.set_num_threads(threads)
    limit_malloc()
    return _high_water_rise(case, name)


def rise(action: Callable[[], object], device: str) -> int | None:
    """Return the bytes by which memory in use exceeds, at its peak within the action, what is in use before.

    On a CPU the process keeps glibc's smallest limits afterwards (`limit_malloc`), which slows allocation down:
    take times before.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        gc.collect()
        limit_malloc()
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")  # the high-water mark restarts from here
        before = _high_water_mark()
        action()
        return _high_water_mark() - before
    except OSError:
        return None


def _one_step(case: Case, function: Callable) -> int | None:
    """Return the rise within a step, less what it is for: output and gradients."""
    inputs, outputs = case.inputs(), []
    peak = rise(lambda: outputs.append(step(function, inputs)), case.device)
    return peak and max(peak - sum(result.nbytes for result in (*outputs, *gradients(inputs))), 0)


def _high_water_rise(case: Case, name: str) -> int | None:
    # Everything that is allocated once and kept (libraries, thread pools, compiled code) comes before the measurement.
    warm_up = case if providers(case.operator)[name].compiles else case.smallest()
    function = provider(name, warm_up)
    step(function, warm_up.inputs())
    return _one_step(case, function if warm_up is case else provider(name, case))


#: Options of glibc's mallopt (malloc.h), and the size from which on a block is mapped alone and returned when it is freed.
TRIM_THRESHOLD, MMAP_THRESHOLD, SMALLEST = -1, -3, 128 * 1024


def limit_malloc() -> None:
    """Have glibc return free memory to the system now, and map large blocks alone from here on, to return them when freed.

    Memory that is reused does not show in the high-water mark. glibc raises its limits with the largest block that was
    freed, and then keeps up to 64 MB in use, unless they are set. A process is measured exactly if they are set before it
    frees large blocks: holes in the heap are filled first.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.mallopt(MMAP_THRESHOLD, SMALLEST)
        library.mallopt(TRIM_THRESHOLD, SMALLEST)
        library.malloc_trim(0)


def _high_water_mark() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
