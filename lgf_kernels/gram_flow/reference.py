"""Reference of Local Gram Flow and its loss: the formulas, literally.

    z[b, t, y, x, d] = < f[b, t, y, x], f[b, t+1, y+dy, x+dx] >       d = (dy, dx) in [-r, r]^2, r = (K-1)/2

with f the L2-normalised features for similarity "cosine" and the features themselves for "dot";
z = 0 outside the frame (SAM2VideoX, section 4.2). The loss (sections 4.3 and 4.4):

    zT[i, d] = sum_m w_m z_m[i, d]                                                the fused teacher
    P = softmax(zT / tau), Q = softmax(zS / tau)                                  over the window
    KL_i = sum_d P[i, d] (log P[i, d] - log Q[i, d])                              divergence "kl"
    L2_i = mean_d (zS[i, d] - zT[i, d])^2                                         divergence "l2"
    loss = sum_i a_i KL_i / sum_i a_i                                             reduction "mean"
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, non_finite_to_nan, norms, reduce_tokens
from .options import LgfOptions
from .window import window_mask


def local_gram_flow(features: Tensor, options: LgfOptions, dtype: torch.dtype | None = None) -> Tensor:
    """Return the logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), computed in `dtype`; differentiable."""
    f = features.to(dtype or accumulate_dtype(features))
    if options.similarity == "cosine":
        f = f / norms(f).clamp_min(EPS)
    queries, keys = f[:, :-1], f[:, 1:]
    if options.direction == "backward":
        queries, keys = keys, queries
    H, W = f.shape[2:4]
    r = options.radius
    keys = F.pad(keys, (0, 0, r, r, r, r))
    shifts = [keys[:, :, y : y + H, x : x + W] for y in range(options.window) for x in range(options.window)]
    return torch.stack([(queries * shifted).sum(-1) for shifted in shifts], dim=-1)


def divergence(student_logits: Tensor, teacher_logits: Tensor, options: LgfOptions) -> Tensor:
    """Return KL_i or L2_i, (B, T-1, H, W), from the logits (B, T-1, H, W, K*K) of student and fused teacher."""
    zS, zT = student_logits, teacher_logits
    inside = window_mask(zS.shape[2], zS.shape[3], options.window, zS.device)
    zS, zT = zS.where(inside, 0.0), zT.where(inside, 0.0)
    member = inside if options.boundary == "exclude" else torch.ones_like(inside)
    if options.divergence == "l2":
        values = ((zS - zT) ** 2).sum(-1) / member.sum(-1)
    else:
        log_p = (zT / options.temperature).masked_fill(~member, -torch.inf).log_softmax(-1)
        log_q = (zS / options.temperature).masked_fill(~member, -torch.inf).log_softmax(-1)
        terms = log_p.exp() * (log_p - log_q)
        values = torch.where(member, terms, 0.0).sum(-1)
    return non_finite_to_nan(values)


def fused_teacher(teachers, teacher_weights, from_logits: bool, options: LgfOptions, dtype: torch.dtype) -> Tensor:
    """Return zT, the weighted sum of the teachers' logits (never of their features)."""
    z = [t.to(dtype) if from_logits else local_gram_flow(t, options, dtype) for t in teachers]
    return sum(w * z_m for w, z_m in zip(teacher_weights, z, strict=True))


def token_losses(student, teachers, teacher_weights, options: LgfOptions, from_logits: bool = False) -> Tensor:
    """Return KL_i or L2_i, (B, T-1, H, W); for direction "both" the mean of the two directions."""
    dtype = accumulate_dtype(student)
    values = []
    for direction in options.directions:
        one_way = options._replace(direction=direction)
        zT = fused_teacher(teachers, teacher_weights, from_logits, one_way, dtype)
        values.append(divergence(local_gram_flow(student, one_way), zT, one_way))
    return sum(values) / len(values)


def lgf_kl(student, teachers, teacher_weights, token_weight, options: LgfOptions, from_logits: bool = False) -> Tensor:
    """Return the loss, reduced by `options.reduction`."""
    values = token_losses(student, teachers, teacher_weights, options, from_logits)
    return reduce_tokens(values, token_weight, options.reduction)
