"""The providers that are measured: baselines in plain PyTorch, other people's kernels, and the library's backends."""

from functools import partial

import torch

from lgf_kernels.core.registry import BACKENDS as NAMES
from lgf_kernels.core.registry import unsupported_reason

from .families import OPERATORS, baselines_and_peers
from .families.base import Case, Loss, Provider, on_backend


def _backend(name: str) -> Provider:
    def reason(case: Case) -> str | None:
        if name == "triton" and case.device == "cpu":
            return "Triton only interprets its kernels on a CPU: right, but nothing to time"
        return unsupported_reason(name, case.registry_call())

    return Provider(f"this library's backend {name!r}", partial(on_backend, name), unsupported_reason=reason)


BACKENDS = {name: _backend(name) for name in NAMES if name != "reference"}


def providers(operator: str) -> dict[str, Provider]:
    """Return all providers of an operator by name: baselines, peers, backends."""
    return baselines_and_peers(operator) | BACKENDS


def all_names() -> list[str]:
    """Return the names of the providers of any operator."""
    return list(dict.fromkeys(name for operator in OPERATORS for name in providers(operator)))


def offered(case: Case) -> dict[str, str | None]:
    """Return, by the name of each provider of the operator, None if it runs this case here, else the reason."""
    return {
        name: it.unsupported_reason(case) or memory_shortage(it.needs(case), case.device)
        for name, it in providers(case.operator).items()
    }


def runnable(case: Case) -> list[str]:
    """Return the names of the providers that run a case here."""
    return [name for name, reason in offered(case).items() if reason is None]


def provider(name: str, case: Case) -> Loss:
    """Return the function of a case as a provider computes it."""
    return providers(case.operator)[name].make(case)


def memory_shortage(needed: float, device: str) -> str | None:
    """Return the reason if so many bytes would leave less than a fifth of the free memory, or None."""
    free = free_memory(device)
    if free is None or needed <= 0.8 * free:
        return None
    return f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"


def free_memory(device: str) -> int | None:
    """Return bytes, or None where the operating system does not tell."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
