"""One case, every provider: the answer first, then time, memory and the rest, as rows of numbers."""

import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from . import ceilings, correctness, counting, memory, timing
from .cases import Case
from .choices import METRICS
from .providers import offered, provider, table

#: What can be measured beside the answer and the time, and what it is.
LONGEST_REASON = 160


@dataclass(frozen=True)
class Plan:
    """How a case is measured."""

    providers: list[str] | None = None
    rounds: int = 9
    metrics: tuple[str, ...] = tuple(METRICS)
    ceiling: dict = field(default_factory=dict)
    #: (items, what is being done) -> the items, with a progress bar around them
    progress: Callable[[Iterable, str], Iterable] = lambda items, doing: items


class BrokenDeviceError(Exception):
    """A provider left the GPU unusable for this process: (its name, what it said)."""


def measure_case(name: str, case: Case, plan: Plan) -> list[dict]:
    """One row for each provider that has to do with the operator, right, wrong, failed or absent."""
    here = offered(case)
    chosen = [p for p in here if plan.providers is None or p in plan.providers]
    rows = {p: _identity(name, case, p) | _floor(case, plan.ceiling) for p in chosen}
    runs = [p for p in chosen if here[p] is None]
    for p in chosen:
        if here[p] is not None:
            rows[p] |= {"status": "absent", "why": here[p]}

    functions = {}
    true = correctness.truth(case) if runs else None
    for p in plan.progress(runs, "checking the answers"):
        rows[p] |= _check(p, case, true, functions, "first" in plan.metrics)
    del true
    times = timing.interleaved(functions, case, plan.rounds, lambda items: plan.progress(items, "timing"))
    for p, seconds in times.items():
        rows[p] |= {part: timing.spread(seconds[part]) for part in counting.PASSES}
        if "first_call_s" in rows[p]:
            rows[p]["first_call_s"] = max(rows[p]["first_call_s"] - rows[p]["both"]["median_ms"] / 1e3, 0.0)
    if "overhead" in plan.metrics:
        for p in plan.progress([p for p in functions if not table()[p].compiles], "overhead of a call"):
            rows[p]["overhead_us"] = 1e6 * timing.overhead(provider(p, case.smallest()), case)
    if "memory" in plan.metrics:
        for p in plan.progress(functions, "peak memory"):
            rows[p]["peak_bytes"] = memory.peak_memory(case, p, functions[p])
    functions.clear()
    _forget_compiled_code()
    return list(rows.values())


def _identity(name: str, case: Case, provider_name: str) -> dict:
    return {
        "case": name,
        "operator": case.operator,
        "shape": list(case.shape),
        "teacher_channels": list(case.teacher_channels),
        "window": case.window,
        "dtype": case.dtype,
        "provider": provider_name,
    }


def _floor(case: Case, ceiling: dict) -> dict:
    work = counting.work(case)
    return {
        "flop": {part: it.flop for part, it in work.items()},
        "bytes": {part: it.bytes for part, it in work.items()},
        "floor_ms": ceilings.floor_ms(work, case.dtype, ceiling),
    }


def _check(name: str, case: Case, true: correctness.Answer, functions: dict, first: bool) -> dict:
    """Errors, and the function among those to be timed if they are small enough."""
    try:
        function = provider(name, case)
        inputs = case.inputs()
        output, seconds = timing.first_call(lambda: correctness.step(function, *inputs), case.device)
    except Exception as error:  # a peer may fail in any way, which is a result
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
        if not device_works(case.device):
            raise BrokenDeviceError(name, why) from error
        return {"status": "failed", "why": why}
    off = correctness.errors(correctness.Answer(output, inputs[0].grad), true)
    shown = dict(zip(("output_error", "gradient_error"), (e if math.isfinite(e) else None for e in off), strict=True))
    if not correctness.is_right(off, case):
        return {"status": "wrong", **shown}
    functions[name] = function
    return {"status": "right", **shown} | ({"first_call_s": seconds} if first else {})


def device_works(device: str) -> bool:
    """After an illegal access nothing runs on a GPU any more, in this process."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def _forget_compiled_code() -> None:
    """The next case compiles anew, and does not run into the compiler's limit on variants."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
