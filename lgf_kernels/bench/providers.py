"""Who is measured: every backend here, and what a user would run instead."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import lgf_kernels as lgf

from ..backends import Request, able, by_itself
from .cases import Case

#: Provider -> what it is. Baselines first; the backends follow under their own names.
BASELINES = {
    "eager-unfold": "torch.nn.functional.unfold of every feature map",
    "eager": "plain PyTorch: a loop over the offsets of the window, or the n x n matrices (the library's oracle)",
    "compile": "torch.compile of the same",
}


def providers(case: Case) -> list[str]:
    """Those that can run a case on this machine."""
    names = [name for name in BASELINES if name != "eager-unfold" or (case.operator == "lgf_kl" and not case.cached)]
    request = Request(case.operator, "cpu")
    return names + [name for name in able(request) if by_itself(name, request)]


def provider(name: str, case: Case) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """The loss of a case as this provider computes it."""
    loss = case.loss()
    if name == "eager-unfold":
        return eager_unfold
    if name == "eager":
        return lambda student, teachers: loss(student, teachers, backend="reference")
    if name == "compile":
        return torch.compile(lambda student, teachers: loss(student, teachers, backend="reference"))
    return lambda student, teachers: loss(student, teachers, backend=name)


def eager_unfold(student: Tensor, teachers: list[Tensor], window: int = 7, temperature: float = 0.1) -> Tensor:
    """LGF-KL with all windows unfolded: K*K copies of every feature map."""

    def logits(features: Tensor) -> Tensor:
        B, T, H, W, C = features.shape
        f = F.normalize(features, dim=-1, eps=1e-6)
        keys = f[:, 1:].flatten(0, 1).permute(0, 3, 1, 2)
        keys = F.unfold(keys, window, padding=window // 2).view(B, T - 1, C, window * window, H, W)
        return torch.einsum("bthwc,btcdhw->bthwd", f[:, :-1], keys)

    outside = ~lgf.local_window_mask(*student.shape[2:4], window, device=student.device)
    log_q = (logits(student) / temperature).masked_fill(outside, -torch.inf).log_softmax(-1)
    teacher = sum(logits(t) for t in teachers) / len(teachers)
    log_p = (teacher / temperature).masked_fill(outside, -torch.inf).log_softmax(-1)
    return torch.where(outside, 0.0, log_p.exp() * (log_p - log_q)).sum(-1).mean()
