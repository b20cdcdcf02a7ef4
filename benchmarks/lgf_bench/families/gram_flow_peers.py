"""Other people's kernels that can compute Local Gram Flow. None is required; those that are not installed are named.

Neighbourhood attention (NATTEN, FlexAttention) never shows its logits, but the loss needs only what attention returns. With
`P`, `Q` the softmaxes of teacher and student, `A_P(v)` attention under `P` of the values `v`, and lse from the same kernels::

    KL_i = (E_P[zT] - E_P[zS]) / tau - lse(zT / tau) + lse(zS / tau)
    E_P[zS]_i = < s_i, A_P(s)_i >,   E_P[zT]_i = < t_i, A_P(t)_i >

The fused teacher is attention over the concatenation of `sqrt(w_m) t_m`. The gradient of lse(zS / tau), which not every
kernel has, is that of `< s_i, A_Q(s)_i > / tau` with Q held fixed. All of it is exact, up to rounding in the features' type.
"""

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lgf_kernels as lgf

from .base import Loss, Provider
from .gram_flow import OPERATORS as OPERATORS  # whose peers these are
from .gram_flow import TEMPERATURE, GramFlow, LgfKl, from_logits, unit

#: (query frames, key frames, values), all (pairs, H, W, C) and the first two without gradient -> A(v) (pairs, H, W, C),
#: and the log-sum-exp of the logits / tau (pairs, H, W).
Attention = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def kl_by_attention(attend: Attention) -> Loss:
    """Return LGF-KL by a kernel of neighbourhood attention, with windows cut at the edge of the frame."""

    def loss(student: Tensor, teachers: list[Tensor]) -> Tensor:
        s, t = unit(student), torch.cat([unit(x) / len(teachers) ** 0.5 for x in teachers], dim=-1)
        (s_queries, s_keys), (t_queries, t_keys) = ((x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)) for x in (s, t))

        def product(queries: Tensor, attended: Tensor) -> Tensor:
            return (queries.float() * attended.float()).sum(-1) / TEMPERATURE

        mean_teacher, lse_teacher = attend(t_queries, t_keys, t_keys, TEMPERATURE)
        mean_student, _ = attend(t_queries, t_keys, s_keys, TEMPERATURE)
        own_mean, lse_student = attend(s_queries.detach(), s_keys.detach(), s_keys, TEMPERATURE)
        lse_gradient = product(s_queries, own_mean)
        lse_student = lse_student.detach() + lse_gradient - lse_gradient.detach()
        kl = product(t_queries, mean_teacher) - product(s_queries, mean_student) - lse_teacher + lse_student
        return kl.mean()

    return loss


@lru_cache(maxsize=8)
def _window_blocks(height: int, width: int, window: int, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    def near(batch, head, query, key):
        rows, columns = query // width - key // width, query % width - key % width
        return (rows.abs() <= window // 2) & (columns.abs() <= window // 2)

    return create_block_mask(near, None, None, height * width, height * width, device=device)


def flex_attention(case: LgfKl, compiled: bool = True) -> Loss:
    """Return the loss by FlexAttention over the tokens of a frame, with the window as its block mask."""
    from torch.nn.attention.flex_attention import AuxRequest
    from torch.nn.attention.flex_attention import flex_attention as flex

    kernel = torch.compile(flex, dynamic=False) if compiled else flex

    def attend(queries: Tensor, keys: Tensor, values: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        H, W = queries.shape[1:3]
        mask = _window_blocks(H, W, case.window, queries.device)
        heads = (x.flatten(1, 2).unsqueeze(1) for x in (queries, keys, values))
        out, auxiliary = kernel(*heads, block_mask=mask, scale=1 / temperature, return_aux=AuxRequest(lse=True))
        return out.squeeze(1).unflatten(1, (H, W)), auxiliary.lse.squeeze(1).unflatten(1, (H, W))

    return kl_by_attention(attend)


#: Logits of positions outside the frame, in units of the temperature: exp(-60) is nothing next to any logit inside.
OUTSIDE = 60.0
#: Channels are padded to a multiple of this, which the kernels' tensor-core instructions want.
ALIGNMENT = 8


def natten(case: LgfKl) -> Loss:
    """Return the loss by NATTEN's 2-D neighbourhood attention.

    Its windows move inwards at the edge of a frame. On a frame padded by the radius they do not, for the queries inside; one
    more channel gives the padding a logit so low that it drops out of the softmax.
    """
    from natten.functional import na2d

    r = case.window // 2

    def attend(queries: Tensor, keys: Tensor, values: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        H, W = queries.shape[1:3]
        widest = max(queries.shape[-1], values.shape[-1])
        channels = widest + 1 + -(widest + 1) % ALIGNMENT

        def framed(x: Tensor, inside: float, outside: float) -> Tensor:
            """Return one head of so many channels, the last of which is `inside` or `outside`."""
            x = F.pad(F.pad(x, (0, channels - 1 - x.shape[-1])), (0, 0, r, r, r, r))
            last = F.pad(x.new_full((len(x), H, W), inside), (r, r, r, r), value=outside)
            return torch.cat([x, last.unsqueeze(-1)], -1).unsqueeze(-2)

        q, k, v = framed(queries, 1, 1), framed(keys, 0, -OUTSIDE * temperature), framed(values, 0, 0)
        out, lse = na2d(q, k, v, kernel_size=case.window, scale=1 / temperature, return_lse=True)
        inside = slice(r, r + H), slice(r, r + W)
        return out[:, *inside, 0, : values.shape[-1]], lse[:, *inside, 0]

    return kl_by_attention(attend)


def correlation_logits(features: Tensor, window: int) -> Tensor:
    """Call Pytorch-Correlation-extension, whose correlation volume of two frames is the Gram of Local Gram Flow."""
    from spatial_correlation_sampler import spatial_correlation_sample

    B, T = features.shape[:2]
    queries, keys = (x.flatten(0, 1).permute(0, 3, 1, 2).contiguous() for x in (features[:, :-1], features[:, 1:]))
    volume = spatial_correlation_sample(queries, keys, kernel_size=1, patch_size=window, stride=1)
    return volume.flatten(1, 2).permute(0, 2, 3, 1).unflatten(0, (B, T - 1))


def liger(case: LgfKl) -> Loss:
    """Return Liger's fused KL divergence of the eager loop's logits: the usual way to have one step of the loss fused."""
    from liger_kernel.ops.kl_div import LigerKLDivLossFunction

    def logits(features: Tensor, window: int) -> Tensor:
        return lgf.local_gram_flow(features, window=window, similarity="dot", backend="reference")

    def kl(log_p: Tensor, log_q: Tensor, outside: Tensor) -> Tensor:
        log_q = log_q.masked_fill(outside, 0.0)  # P is 0 there, and 0 times infinity is no number
        return LigerKLDivLossFunction.apply(log_q.flatten(0, -2), log_p.exp().flatten(0, -2), "batchmean", False, 1e-30)

    return from_logits(logits, case, kl)


def _peer(
    about: str, make: Callable, module: str, package: str, not_on_cpu: str = "", cached: bool = False, **more
) -> Provider:
    """Return a provider that may not be installed, may run on GPUs alone, and may need features of the teachers."""

    def unsupported_reason(case: GramFlow) -> str | None:
        if "cached" in case.options() and not cached:
            return "needs the teachers' features, not their logits"
        if not_on_cpu and case.device == "cpu":
            return not_on_cpu
        return None if importlib.util.find_spec(module) else f"not installed: pip install {package}"

    return Provider(about, make, unsupported_reason=unsupported_reason, **more)


_LOSS = {"operators": (LgfKl.operator,)}
PEERS = {
    "flexattention": _peer(
        "torch's FlexAttention, with the loss from its outputs and log-sum-exps", flex_attention, "torch", "torch",
        "torch's FlexAttention has no backward on CPUs", compiles=True, **_LOSS,
    ),
    "natten": _peer("NATTEN, likewise", natten, "natten", "natten", "NATTEN has no backward on CPUs", **_LOSS),
    "correlation": _peer(
        "spatial-correlation-sampler's volumes, plain PyTorch for the rest", partial(from_logits, correlation_logits),
        "spatial_correlation_sampler", "spatial-correlation-sampler", cached=True,
    ),
    "liger": _peer(
        "Liger's KL divergence of the eager loop's logits", liger, "liger_kernel", "liger-kernel",
        "Liger's Triton kernels need a GPU", cached=True, **_LOSS,
    ),
}  # fmt: skip
