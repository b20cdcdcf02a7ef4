"""Reference of token relation distances: the formulas, literally.

    S_Z[i, j] = < z^_i, z^_j >, S_M[i, j] = < m^_i, m^_j >            all pairs of the n = F*N tokens of a video
    negatives "clamp": max(S_Z, 0), max(S_M, 0); "clamp-teacher": S_Z, max(S_M, 0)
    D[i, j] = relu( |S_Z[i, j] - S_M[i, j]| - margin ), squared for distance "l2"
    loss_b = sum_{f, g} c[f, g] * mean_{i in f, j in g} D[i, j]       c: the frame-pair weights

For similarity "dot" the features are not normalised. A pair of frames of weight 0 is no part of the
loss. VideoREPA's TRD, MoAlign, equations 5 to 8, DINOv3's Gram loss, and SARA's autocorrelation.
"""

import torch
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, non_finite_to_nan, norms, reduce_videos
from .options import RelationOptions


def video_losses(student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions) -> Tensor:
    """Return loss_b (B,) of student (B, F, N, C), teacher (B, F, N, C') and pair_weight (F, F); differentiable."""
    dtype = accumulate_dtype(student)
    B, frames, N, _ = student.shape
    z, m = (f.to(dtype).flatten(1, 2) for f in (student, teacher))
    if options.cosine:
        z, m = (f / norms(f).clamp_min(EPS) for f in (z, m))
    difference = similarities(z, options.clamps_student) - similarities(m, options.clamps_teacher)
    distance = torch.relu(difference.abs() - options.margin)
    if options.squared:
        distance = distance.square()
    frame_means = distance.reshape(B, frames, N, frames, N).mean((2, 4))
    c = pair_weight.to(dtype)
    return non_finite_to_nan(torch.where(c != 0, c * frame_means, 0.0).sum((1, 2)))


def similarities(features: Tensor, clamp: bool) -> Tensor:
    """Return f f^T and, to `clamp`, 0 where it is negative, but NaN for -inf.

    The derivative at 0 is 1: as published, only what is below 0 is replaced.
    """
    products = features @ features.mT
    return products * (products >= 0) if clamp else products


def token_relation(student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions) -> Tensor:
    """Return the loss, reduced over the videos of the batch."""
    return reduce_videos(video_losses(student, teacher, pair_weight, options), options.reduction)
