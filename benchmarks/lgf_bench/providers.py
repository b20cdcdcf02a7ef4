"""Who is measured: what a user would run instead, other people's kernels (`peers`), and every backend here."""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lgf_kernels as lgf
from lgf_kernels.core.registry import BACKENDS as NAMES
from lgf_kernels.core.registry import Call, unsupported_reason

from .cases import Case

Loss = Callable[[Tensor, list[Tensor]], Tensor]
LGF, RELATION = ("lgf_kl", "local_gram_flow"), ("token_relation",)


class Provider(NamedTuple):
    """`make(case)` gives the function; `why_not(case)` says why it cannot run here; `needs(case)` guesses its memory;
    `compiles` for seconds to minutes, and anew for every shape."""

    about: str
    operators: tuple[str, ...]
    make: Callable[[Case], Loss]
    why_not: Callable[[Case], str | None] = lambda case: None
    needs: Callable[[Case], float] = lambda case: 0.0
    compiles: bool = False


def unfolded_logits(features: Tensor, window: int) -> Tensor:
    """All windows unfolded: K*K copies of the feature map."""
    B, T, H, W, C = features.shape
    keys = features[:, 1:].flatten(0, 1).permute(0, 3, 1, 2)
    keys = F.unfold(keys, window, padding=window // 2).view(B, T - 1, C, window * window, H, W)
    return torch.einsum("bthwc,btcdhw->bthwd", features[:, :-1], keys)


def blocked_logits(features: Tensor, window: int, tile: int = 8) -> Tensor:
    """Tiles of queries against their halos of keys in one batched product, from which each query gathers its window."""
    B, T, H, W = features.shape[:4]
    r, down, right = window // 2, -H % tile, -W % tile
    halo = tile + 2 * r
    queries = F.pad(features[:, :-1], (0, 0, 0, right, 0, down)).flatten(0, 1)
    keys = F.pad(features[:, 1:], (0, 0, r, r + right, r, r + down)).flatten(0, 1)
    queries = queries.unfold(1, tile, tile).unfold(2, tile, tile).flatten(-2)
    keys = keys.unfold(1, halo, tile).unfold(2, halo, tile).flatten(-2)
    gram = queries.mT @ keys
    inner, offset = (torch.arange(length, device=features.device) for length in (tile, window))
    row, column = (inner[:, None, None, None] + offset[:, None]), (inner[:, None, None] + offset)
    index = (row * halo + column).reshape(tile * tile, window * window)
    logits = gram.gather(-1, index.expand(*gram.shape[:-2], -1, -1)).unflatten(3, (tile, tile))
    logits = logits.transpose(2, 3).reshape(B, T - 1, H + down, W + right, window * window)
    return logits[:, :, :H, :W]


def unit(features: Tensor) -> Tensor:
    """Normalised in float32, in the features' own type: what a user hands to a matrix product."""
    return F.normalize(features.float(), dim=-1, eps=1e-6).to(features.dtype)


def from_logits(logits: Callable[[Tensor, int], Tensor], case: Case, temperature: float = 0.1) -> Loss:
    """The operator of a case, by somebody's logits of normalised features and plain PyTorch for the rest."""

    def outside(student: Tensor) -> Tensor:
        return ~lgf.local_window_mask(*student.shape[2:4], case.window, device=student.device)

    def gram(features: Tensor) -> Tensor:
        return logits(unit(features), case.window).float()

    def local_gram_flow(student: Tensor, teachers: list[Tensor]) -> Tensor:
        return gram(student).masked_fill(outside(student), 0.0)

    def lgf_kl(student: Tensor, teachers: list[Tensor]) -> Tensor:
        out = outside(student)
        zT = sum(t.float() if case.cached else gram(t) for t in teachers) / len(teachers)
        log_q = (gram(student) / temperature).masked_fill(out, -torch.inf).log_softmax(-1)
        log_p = (zT / temperature).masked_fill(out, -torch.inf).log_softmax(-1)
        return torch.where(out, 0.0, log_p.exp() * (log_p - log_q)).sum(-1).mean()

    return lgf_kl if case.operator == "lgf_kl" else local_gram_flow


def chunked_relation(case: Case) -> Loss:
    """Token relations a frame's rows at a time, recomputed in backward: what one writes when n x n does not fit."""
    form = lgf.TokenRelationLoss(case.form)
    c = form.pair_weight(case.shape[1], case.device)

    def rows(z: Tensor, m: Tensor, f: int) -> Tensor:
        N = z.shape[1] // len(c)
        one = slice(f * N, (f + 1) * N)
        distance = torch.relu((z[:, one] @ z.mT - m[:, one] @ m.mT).abs() - form.margin)
        return (c[f] * distance.unflatten(-1, (len(c), N)).mean((1, 3))).sum(-1)

    def loss(student: Tensor, teachers: list[Tensor]) -> Tensor:
        z, m = (F.normalize(x.flatten(1, -2).float(), dim=-1, eps=1e-6) for x in (student, teachers[0]))
        return sum(checkpoint(rows, z, m, f, use_reentrant=False) for f in range(len(c))).mean()

    return loss


def _of_the_library(backend: str, case: Case) -> Loss:
    call = case.call()
    return lambda student, teachers: call(student, teachers, backend=backend)


def _compiled(case: Case) -> Loss:
    return torch.compile(_of_the_library("reference", case), dynamic=False)


def _maps(number: Callable[[Case], int]) -> Callable[[Case], float]:
    """Memory as a number of feature maps in float32, or, of token relations, of n x n matrices."""

    def needs(case: Case) -> float:
        elements = torch.Size(case.shape).numel()
        if case.operator == "token_relation":
            B, frames, N, _ = case.shape
            elements = B * (frames * N) ** 2
        return 4.0 * elements * number(case)

    return needs


def _eager_maps(case: Case) -> int:
    return 4 if case.operator == "token_relation" else case.window**2 + 7


#: Those that are not backends of this library. The numbers of maps are measured ones (the table's peak memory), rounded up.
BASELINES = {
    "eager-unfold": Provider(
        "torch.nn.functional.unfold of every feature map", LGF, partial(from_logits, unfolded_logits),
        needs=_maps(lambda case: 3 * case.window**2),
    ),
    "eager": Provider(
        "plain PyTorch: a loop over the offsets of the window, or the n x n matrices (the library's oracle)",
        LGF + RELATION, partial(_of_the_library, "reference"), needs=_maps(_eager_maps),
    ),
    "compile": Provider(
        "torch.compile of eager", LGF + RELATION, _compiled,
        needs=_maps(lambda case: 3 if case.operator == "token_relation" else 8), compiles=True,
    ),
    "bmm": Provider(
        "batched products of 8 x 8 queries with their halos, then a gather", LGF, partial(from_logits, blocked_logits),
        needs=_maps(lambda case: 20),
    ),
    "chunked": Provider("eager, a frame's rows at a time, with checkpointing", RELATION, chunked_relation),
}  # fmt: skip


def _backend(name: str, operators: tuple[str, ...] = LGF + RELATION) -> Provider:
    def why_not(case: Case) -> str | None:
        if name == "triton" and case.device == "cpu":
            return "Triton only interprets its kernels on a CPU: right, but nothing to time"
        return unsupported_reason(name, Call(case.operator, case.device))

    return Provider(f"this library's backend {name!r}", operators, partial(_of_the_library, name), why_not)


BACKENDS = {name: _backend(name) for name in NAMES if name != "reference"}


def table() -> dict[str, Provider]:
    """Everybody, by name: baselines, peers, backends."""
    from .peers import PEERS

    return {**BASELINES, **PEERS, **BACKENDS}


#: Providers that broke the GPU for the process before this one (`runner`), and what they said, as JSON.
BROKEN = "LGF_BENCH_BROKEN"


def broken() -> dict[str, str]:
    return json.loads(os.environ.get(BROKEN, "{}"))


def offered(case: Case) -> dict[str, str | None]:
    """Name -> None if it runs this case here, else why not. Those that have nothing to do with the operator are left out."""
    return {
        name: broken().get(name) or it.why_not(case) or why_not_memory(it.needs(case), case.device)
        for name, it in table().items()
        if case.operator in it.operators
    }


def providers(case: Case) -> list[str]:
    """Those that run a case here."""
    return [name for name, why_not in offered(case).items() if why_not is None]


def provider(name: str, case: Case) -> Loss:
    """The function of a case as this provider computes it."""
    return table()[name].make(case)


def why_not_memory(needed: float, device: str) -> str | None:
    free = free_memory(device)
    if free is None or needed <= 0.8 * free:
        return None
    return f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"


def free_memory(device: str) -> int | None:
    """Bytes; None where the operating system does not tell."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
