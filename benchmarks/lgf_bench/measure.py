"""Measurement of one case with every provider: the answer first, then time, memory and the rest, as rows."""

import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from . import ceilings, correctness, memory, timing
from .families.base import PASSES, Case, Loss, each
from .processes import BrokenDeviceError
from .providers import offered, provider, providers

LONGEST_REASON = 160
#: What is measured beside answers and times.
METRICS = {
    "memory": "peak memory",
    "overhead": "what a call costs the host",
    "first": "the first call, compilation included, from empty compiler caches",
}


@dataclass(frozen=True)
class Plan:
    """How a case is measured. `broken`: providers to leave out, and the reason."""

    providers: list[str] | None = None
    rounds: int = 9
    metrics: tuple[str, ...] = tuple(METRICS)
    ceiling: dict = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def reasons(self, case: Case) -> dict[str, str | None]:
        """Return, by the name of each provider that is asked for, None if it runs a case, else the reason."""
        found = {name: self.broken.get(name, reason) for name, reason in offered(case).items()}
        return {name: it for name, it in found.items() if self.providers is None or name in self.providers}


def measure_case(name: str, case: Case, plan: Plan) -> list[dict]:
    """Return one row for each provider of the operator, right, wrong, failed or absent."""
    shared, rows, functions = _shared(name, case, plan.ceiling), {}, {}
    for p, reason in plan.reasons(case).items():
        rows[p] = shared | {"provider": p} | ({"status": "absent", "why": reason} if reason else {})
    runs = [p for p, row in rows.items() if "why" not in row]
    true = correctness.truth(case) if runs else None
    for p in progress(runs, f"{name}: checking the answers"):
        found, function = checked(p, lambda p=p: provider(p, case), case, true)
        rows[p] |= found
        if function:
            functions[p] = function
    del true
    rounds = progress(range(plan.rounds), f"{name}: timing")
    for p, seconds in timing.interleaved(functions, case, rounds).items():
        rows[p] |= {part: timing.spread(seconds[part]) for part in PASSES}
        first = rows[p].pop("first_call_s") - rows[p]["both"]["median_ms"] / 1e3
        if "first" in plan.metrics:
            rows[p]["first_call_s"] = max(first, 0.0)
    if "overhead" in plan.metrics:
        quick = [p for p in functions if not providers(case.operator)[p].compiles]
        for p in progress(quick, f"{name}: overhead of a call"):
            rows[p]["overhead_us"] = 1e6 * timing.overhead(provider(p, case.smallest()), case)
    if "memory" in plan.metrics:
        for p in progress(functions, f"{name}: peak memory"):
            rows[p]["peak_bytes"] = memory.peak_memory(case, p, functions[p])
    functions.clear()
    _forget_compiled_code()
    return list(rows.values())


def progress(items: Iterable, doing: str) -> Iterable:
    """Return the items behind a bar on a terminal, and behind nothing elsewhere."""
    return tqdm(items, desc=doing, leave=False, disable=None)


def _shared(name: str, case: Case, ceiling: dict) -> dict:
    """Return what the rows of a case have in common."""
    work = case.work()
    return {
        "case": name,
        "operator": case.operator,
        "tensors": {tensor: each(lambda t: list(t.shape), value) for tensor, value in case.layout().items()},
        "options": case.options(),
        "dtype": case.dtype,
        "flop": {part: it.flop for part, it in work.items()},
        "bytes": {part: it.bytes for part, it in work.items()},
        "floor_ms": ceilings.floor_ms(work, case.dtype, ceiling),
    }


def checked(name: str, make: Callable[[], Loss], case: Case, true: correctness.Answer) -> tuple[dict, Loss | None]:
    """Return status, errors and the seconds of the first call, with the function if its answer is right."""
    try:
        function, inputs = make(), case.inputs()
        output, seconds = timing.first_call(lambda: correctness.step(function, inputs), case.device)
    except Exception as error:  # a peer or a compiler may fail in any way, which is a result
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
        if not device_works(case.device):
            raise BrokenDeviceError(name, reason) from error
        return {"status": "failed", "why": reason}, None
    off = correctness.errors(correctness.Answer(output, correctness.gradients(inputs)), true)
    shown = dict(zip(("output_error", "gradient_error"), (e if math.isfinite(e) else None for e in off), strict=True))
    if not correctness.is_right(off, case):
        return {"status": "wrong", **shown}, None
    return {"status": "right", **shown, "first_call_s": seconds}, function


def device_works(device: str) -> bool:
    """Return whether this process can still use a GPU; after an illegal access it cannot."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def _forget_compiled_code() -> None:
    """Let the next case compile anew, within the compiler's limit on variants."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
