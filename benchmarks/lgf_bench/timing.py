"""Times of interleaved runs of all providers, which drift of the machine affects alike; medians with their spread.

On a CPU the clock is the wall's or, on a machine that is busy with other things, the CPU time of this process. On a GPU it is
CUDA events, with the L2 cache flushed before each run and the device kept busy until the host has queued the whole of it: the
time of the device alone. What the host does is measured apart, as the overhead of a call on inputs so small that arithmetic
takes no time.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch

from lgf_kernels.core.verify import HEAD_START

from .correctness import clear_gradients, step
from .families.base import PASSES, Case

#: Calls whose mean is the overhead of one.
CALLS = 50

#: Clocks of a CPU. "cpu" counts only while this process runs: fair on a busy machine, with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = "wall"


@contextmanager
def use_clock(name: str) -> Iterator[None]:
    """Measure by a clock of a CPU until the block ends; whoever measures next in this process has the one from before."""
    global _clock
    before, _clock = _clock, name
    try:
        yield
    finally:
        _clock = before


def clock_in_use(device: str) -> str:
    return "events" if torch.device(device).type == "cuda" else _clock


def now() -> float:
    return CLOCKS[_clock]()


class Clock:
    """Marks in time on one device: `mark()` several times, then `seconds()` between neighbours."""

    def __init__(self, device: str):
        self.cuda = torch.device(device).type == "cuda"
        self.device = device
        self.marks = []
        if self.cuda:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self.flusher = torch.empty(size, dtype=torch.uint8, device=device)

    def start(self) -> None:
        """Set the first mark: on a GPU from a cold L2, with a head start for the host."""
        self.marks = []
        if self.cuda:
            self.flusher.zero_()
            torch.cuda._sleep(HEAD_START)  # a host that takes longer shows in the time
        self.mark()

    def mark(self) -> None:
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(now())

    def seconds(self) -> list[float]:
        wait(self.device)
        return [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairwise(self.marks)]


def best(action: Callable, device: str, runs: int, at_least: int = 1) -> float:
    """Return the shortest of several runs of an action, in seconds, each of `at_least` calls."""
    clock, calls = Clock(device), max(1, at_least)
    times = []
    for _ in range(runs + 1):
        clock.start()
        for _ in range(calls):
            action()
        clock.mark()
        times += clock.seconds()
    return min(times[1:]) / calls


def interleaved(functions: dict[str, Callable], case: Case, rounds: Iterable) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of forward, backward and both of each provider in each round: A B C A B C ..."""
    inputs, clock = case.inputs(), Clock(case.device)
    seconds = {name: {part: [] for part in PASSES} for name in functions}
    for _ in rounds:
        for name, function in functions.items():
            clear_gradients(inputs)
            clock.start()
            output = function(**inputs.tensors)
            clock.mark()
            output.backward(inputs.upstream)
            clock.mark()
            forward, backward = clock.seconds()
            for part, value in zip(PASSES, (forward, backward, forward + backward), strict=True):
                seconds[name][part].append(value)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def overhead(function: Callable, case: Case) -> float:
    """Return the seconds that forward and backward take on the smallest inputs, which is all the host's doing."""
    inputs = case.smallest().inputs()
    for _ in range(3):
        step(function, inputs)
    wait(case.device)
    start = now()
    for _ in range(CALLS):
        step(function, inputs)
    wait(case.device)
    return (now() - start) / CALLS


def first_call(action: Callable, device: str) -> tuple[object, float]:
    """Return what an action returns, and its seconds on the wall the first time, compilers in other processes included."""
    wall = CLOCKS["wall"]
    start = wall()
    result = action()
    wait(device)
    return result, wall() - start


def wait(device: str) -> None:
    """Wait until the device has done all that is queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
