"""Reference of token relation distances: the formulas, literally.

    S_Z[i, j] = < z^_i, z^_j >, S_M[i, j] = < m^_i, m^_j >            all pairs of the n = F*N tokens of a video
    D[i, j] = relu( |S_Z[i, j] - S_M[i, j]| - margin )
    loss_b = sum_{f, g} c[f, g] * mean_{i in f, j in g} D[i, j]       c: the frame-pair weights

A pair of frames of weight 0 is no part of the loss. VideoREPA's TRD and MoAlign, equations 5 to 8.
"""

import torch
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, non_finite_to_nan, norms, reduce_videos


def video_losses(student: Tensor, teacher: Tensor, pair_weight: Tensor, margin: float) -> Tensor:
    """Return loss_b (B,) of student (B, F, N, C), teacher (B, F, N, C') and pair_weight (F, F); differentiable."""
    dtype = accumulate_dtype(student)
    B, frames, N, _ = student.shape
    z, m = (f.to(dtype).flatten(1, 2) for f in (student, teacher))
    z, m = (f / norms(f).clamp_min(EPS) for f in (z, m))
    difference = z @ z.mT - m @ m.mT
    distance = torch.relu(difference.abs() - margin)
    frame_means = distance.reshape(B, frames, N, frames, N).mean((2, 4))
    c = pair_weight.to(dtype)
    return non_finite_to_nan(torch.where(c != 0, c * frame_means, 0.0).sum((1, 2)))


def token_relation(student, teacher, pair_weight, margin: float, reduction: str) -> Tensor:
    """Return the loss, reduced over the videos of the batch."""
    return reduce_videos(video_losses(student, teacher, pair_weight, margin), reduction)
