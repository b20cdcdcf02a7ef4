"""Measuring: the answer first, then time from interleaved runs, and memory in a process of its own."""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .cases import Case
from .providers import provider


def step(loss: Callable, student: Tensor, teachers: list[Tensor]) -> Tensor:
    """One forward and backward, as a training step does them; the gradient is left in `student.grad`."""
    student.grad = None
    value = loss(student, teachers)
    value.backward()
    return value.detach()


def truth(case: Case) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the oracle in float64 on the case's inputs."""
    student, teachers = case.inputs()
    student = student.detach().double().requires_grad_()
    value = step(
        lambda s, t: case.loss()(s, t, backend="reference"),
        student,
        [t if case.cached else t.double() for t in teachers],
    )
    return value, student.grad


def errors(loss: Callable, case: Case, true_value: Tensor, true_gradient: Tensor) -> tuple[float, float]:
    """Relative errors of the loss and, by norm, of its gradient."""
    student, teachers = case.inputs()
    value = step(loss, student, teachers)
    gradient_error = torch.linalg.vector_norm(student.grad - true_gradient) / torch.linalg.vector_norm(true_gradient)
    return abs(value / true_value - 1).item(), gradient_error.item()


def interleaved(losses: dict[str, Callable], case: Case, rounds: int, progress: Callable) -> dict[str, list[float]]:
    """Seconds of forward and backward of each provider, A B C A B C ..., so that drift of the machine hits all alike."""
    student, teachers = case.inputs()
    seconds = {name: [] for name in losses}
    for _ in progress(range(rounds)):
        for name, loss in losses.items():
            start = time.perf_counter()
            step(loss, student, teachers)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def peak_memory(case: Case, provider_name: str) -> int | None:
    """Bytes that one forward and backward needs beyond the inputs and the gradient, in a fresh process.

    None where the operating system does not tell (anything but Linux).
    """
    job = json.dumps({"case": asdict(case), "provider": provider_name, "threads": torch.get_num_threads()})
    command = [sys.executable, "-m", __name__, job]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {provider_name} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _peak_memory_here(case: Case, provider_name: str) -> int | None:
    student, teachers = case.inputs()
    loss = provider(provider_name, case)
    # Everything that is allocated once and kept (libraries, thread pools, compiled code) comes before the measurement.
    small = replace(case, shape=(1, 2, *[min(n, 8) for n in case.shape[2:-1]], 16), teacher_channels=(16,))
    warm_up = case if provider_name == "compile" else small
    step(loss if warm_up is case else provider(provider_name, warm_up), *warm_up.inputs())
    student.grad = None
    _return_free_memory()
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")  # the high-water mark restarts from here
        before = _high_water_mark()
        step(loss, student, teachers)
        return max(_high_water_mark() - before - student.grad.nbytes, 0)
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
    print(json.dumps(_peak_memory_here(Case(**job["case"]), job["provider"])))
