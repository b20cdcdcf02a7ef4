"""The oracle of patch cosine: the formula, literally.

    y = concat_m( sqrt(w_m / W) F_m / max(||F_m||, eps) ),  h^ = h / max(||h||, eps)        W = sum_m w_m
    l[n] = 1 - < h^_n, y_n >                                                                without frame weights
    l[f, n] = sum_k c[f, k] (1 - < h^_{f,n}, y_{k,n} >)                                     with frame weights c
    loss = sum_i a_i l_i / sum_i a_i                                                        reduction "mean"

A pair of frames of weight 0 is no part of the loss. Align4Gen, equation 13; CREPA.
"""

import torch
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, non_finite_to_nan, norms, reduce_tokens


def patch_cosine(student, teachers, shares, frame_weight, token_weight, reduction: str) -> Tensor:
    """Return the loss of student (B, F, H, W, C) and teachers (B, K, H, W, C_m); shares are sqrt(w_m / W)."""
    values = token_losses(student, teachers, shares, frame_weight)
    return reduce_tokens(non_finite_to_nan(values), token_weight, reduction)


def token_losses(student, teachers, shares, frame_weight) -> Tensor:
    """Return l, (B, F, H, W), differentiable."""
    dtype = accumulate_dtype(student)
    h, *features = (f.to(dtype) for f in (student, *teachers))
    h = h / norms(h).clamp_min(EPS)
    y = torch.cat([share * f / norms(f).clamp_min(EPS) for share, f in zip(shares, features, strict=True)], -1)
    if frame_weight is None:
        return 1 - (h * y).sum(-1)
    frames = []
    for own, weights in zip(h.unbind(1), frame_weight.to(dtype), strict=True):
        distance = 1 - (own.unsqueeze(1) * y).sum(-1)
        c = weights.view(-1, 1, 1)
        frames.append(torch.where(c != 0, c * distance, 0).sum(1))
    return torch.stack(frames, 1)
