"""The oracle of point correspondence: the formulas written out literally, one frame at a time.

    f_q = sum_k beta_k E[t_q, corner_k],  f^ = f_q / max(||f_q||, eps)          bilinear, of the raw features
    z_j = < f^, e^_j > / tau                                                    e^_j = E[t, j] / max(||E[t, j]||, eps)
    P = softmax_j z,  p^ = sum_j P_j r_j                                        r_j: the row and column of token j
    e = ||p^ - p||,  l = e^2/2 if e <= delta else delta (e - delta/2)           "huber";  l = e for "l1"
    loss = sum w l / sum w                                                      over the frames t != t_q

With a window the softmax runs over the tokens at most so many rows and columns from the largest z_j.
"""

import torch
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, norms
from .distance import reduced, token_places, window_mask
from .options import PointOptions
from .sampling import corners_of, sampled


def point_correspondence(features: Tensor, queries: Tensor, options: PointOptions) -> Tensor:
    """p^ (B, N, T, 2) from features (B, T, H, W, C) and queries (B, N, 3), differentiable."""
    dtype = accumulate_dtype(features)
    f = sampled(features, corners_of(queries, features.shape, dtype))
    f = f / norms(f).clamp_min(EPS)
    r = token_places(features)
    places = []
    for frame in features.unbind(1):
        e = frame.flatten(1, 2).to(dtype)
        e = e / norms(e).clamp_min(EPS)
        z = f @ e.mT / options.temperature
        if options.window is not None:
            z = z.masked_fill(~window_mask(z.argmax(-1), r, options.window), -torch.inf)
        places.append(z.softmax(-1) @ r)
    return torch.stack(places, 2)


def point_correspondence_loss(features, queries, targets, weight, options: PointOptions) -> Tensor:
    """The loss, reduced as `options.reduction` says."""
    return reduced(point_correspondence(features, queries, options), queries, targets, weight, options)
