"""Conventions that every backend shares: accumulation type, epsilon, window, reductions.

They stand here once so that two backends cannot disagree on them.
"""

import torch
from torch import Tensor

from .options import LgfOptions

#: Norms below this count as this (`f / max(||f||, EPS)`), so that a zero vector has similarity 0 and not NaN.
EPS = 1e-6


def accumulate_dtype(student: Tensor) -> torch.dtype:
    """float64 for a float64 student, float32 for anything else."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def window_mask(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """bool (H, W, K*K): whether offset d = (dy, dx) of the token (y, x) lies inside the frame. d runs row by row."""
    offset = torch.arange(window, device=device) - window // 2
    y = torch.arange(height, device=device)[:, None] + offset
    x = torch.arange(width, device=device)[:, None] + offset
    inside_y = (y >= 0) & (y < height)
    inside_x = (x >= 0) & (x < width)
    return (inside_y[:, None, :, None] & inside_x[None, :, None, :]).reshape(height, width, window * window)


def lgf_pairs_shape(features: Tensor) -> tuple[int, ...]:
    """(B, T-1, H, W): one entry for each query token of features (B, T, H, W, C)."""
    B, T, H, W, _ = features.shape
    return (B, T - 1, H, W)


def last_dimension_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, whatever the other strides; else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def empty_residual(student: Tensor, options: LgfOptions, needs_grad: bool) -> Tensor:
    """Room for d KL_i / d zS, (directions, B, T-1, H, W, K*K): what a forward keeps for its backward. Empty if it need not."""
    shape = (len(options.directions), *lgf_pairs_shape(student), options.window**2) if needs_grad else (0,)
    return student.new_empty(shape, dtype=accumulate_dtype(student))


def non_finite_to_nan(values: Tensor) -> Tensor:
    """inf becomes NaN, anything finite stays bit for bit: an infinite loss is as broken as a NaN one, and says so."""
    return values + (values - values)


def norms(features: Tensor) -> Tensor:
    """||f||, (..., 1), for features (..., C); NaN where the sum of squares overflows.

    As inf it would make every similarity of finite features 0, and their loss finite and wrong.
    """
    return non_finite_to_nan(torch.linalg.vector_norm(features, dim=-1, keepdim=True))


def reduce_tokens(values: Tensor, token_weight: Tensor | None, reduction: str) -> Tensor:
    """Reduce the divergences (B, T-1, H, W) of single tokens to the loss: `sum a_i v_i / sum a_i` for "mean"."""
    if token_weight is not None:
        values = token_weight * values
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.mean() if token_weight is None else values.sum() / token_weight.sum()


def token_scale(grad_loss: Tensor, token_weight: Tensor | None, reduction: str, shape: tuple[int, ...]) -> Tensor:
    """d loss / d v_i times the upstream gradient: the derivative of `reduce_tokens`, shape (B, T-1, H, W)."""
    scale = grad_loss
    if reduction == "mean":
        scale = scale / (torch.Size(shape).numel() if token_weight is None else token_weight.sum())
    if token_weight is not None:
        scale = scale * token_weight
    return scale.expand(shape)


def reduce_videos(losses: Tensor, reduction: str) -> Tensor:
    """Reduce the losses (B,) of single videos."""
    return {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()


def video_scale(grad_loss: Tensor, reduction: str, videos: int) -> Tensor:
    """The derivative of `reduce_videos` times the upstream gradient, shape (B,)."""
    scale = grad_loss / videos if reduction == "mean" else grad_loss
    return scale.expand(videos)
