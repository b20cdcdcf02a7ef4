"""Conventions that every backend of every family shares: accumulation type, epsilon, norms, reductions over videos.

They stand here once so that two backends cannot disagree on them.
"""

import torch
from torch import Tensor

#: Norms below this count as this (`f / max(||f||, EPS)`), so that a zero vector has similarity 0 and not NaN.
EPS = 1e-6


def accumulate_dtype(student: Tensor) -> torch.dtype:
    """float64 for a float64 student, float32 for anything else."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def last_dimension_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, whatever the other strides; else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def non_finite_to_nan(values: Tensor) -> Tensor:
    """inf becomes NaN, anything finite stays bit for bit: an infinite loss is as broken as a NaN one, and says so."""
    return values + (values - values)


def norms(features: Tensor) -> Tensor:
    """||f||, (..., 1), for features (..., C); NaN where the sum of squares overflows.

    As inf it would make every similarity of finite features 0, and their loss finite and wrong.
    """
    return non_finite_to_nan(torch.linalg.vector_norm(features, dim=-1, keepdim=True))


def divided_by_norm(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features divided by their norms, or by EPS where those are less, and the norms (..., 1)."""
    norm = norms(features)
    return features / norm.clamp_min(EPS), norm


def normalised_gradient(upstream: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    """df = (I - f^ f^T) df^ / ||f||; where the norm was clamped it is a constant and the projection falls away."""
    if norm is None:
        return upstream
    radial = torch.where(norm >= EPS, (upstream * unit).sum(-1, keepdim=True), 0)
    return torch.addcmul(upstream, radial, unit, value=-1).div_(norm.clamp_min(EPS))


def reduce_videos(losses: Tensor, reduction: str) -> Tensor:
    """Reduce the losses (B,) of single videos."""
    return {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()


def video_scale(grad_loss: Tensor, reduction: str, videos: int) -> Tensor:
    """The derivative of `reduce_videos` times the upstream gradient, shape (B,)."""
    scale = grad_loss / videos if reduction == "mean" else grad_loss
    return scale.expand(videos)


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is not below a positive number. Triton's own would need Triton, and counting work does not."""
    return 1 << (number - 1).bit_length()
