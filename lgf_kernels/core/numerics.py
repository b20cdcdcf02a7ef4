"""Numerical conventions of all backends: accumulation type, epsilon, norms, reductions.

They are defined once, so that no two backends disagree.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Lower bound of norms, `f / max(||f||, EPS)`: a zero vector has similarity 0, not NaN.
EPS = 1e-6


def accumulate_dtype(student: Tensor) -> torch.dtype:
    """Return float64 for a float64 student, float32 for any other."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def last_dimension_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself if its last dimension is contiguous, whatever the other strides, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def non_finite_to_nan(values: Tensor) -> Tensor:
    """Turn inf into NaN and leave finite values bit for bit: an infinite loss is as invalid as NaN."""
    return values + (values - values)


def norms(features: Tensor) -> Tensor:
    """Return ||f||, (..., 1), of features (..., C), with NaN where the sum of squares overflows.

    A norm of inf would make every similarity of finite features 0, and their loss finite and wrong.
    """
    return non_finite_to_nan(torch.linalg.vector_norm(features, dim=-1, keepdim=True))


def divided_by_norm(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features divided by `max(norm, EPS)`, and the norms (..., 1)."""
    norm = norms(features)
    return features / norm.clamp_min(EPS), norm


def normalised_gradient(upstream: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    """Return df = (I - f^ f^T) df^ / ||f||. A clamped norm is a constant: there is no projection."""
    if norm is None:
        return upstream
    radial = torch.where(norm >= EPS, (upstream * unit).sum(-1, keepdim=True), 0)
    return torch.addcmul(upstream, radial, unit, value=-1).div_(norm.clamp_min(EPS))


def largest_of(weight: Tensor) -> Tensor:
    """Return the largest weight, 0 of none."""
    return weight.amax() if weight.numel() else weight.new_zeros(())


def relative_weight(
    weight: Tensor | None, dtype: torch.dtype, reduction: str, largest: Callable[[Tensor], Tensor] = largest_of
) -> Tensor | None:
    """Return weights in the accumulation type; for "mean", where only their ratios count, with the largest near 1.

    Their sum then neither overflows nor vanishes. They are divided by a power of 2, which changes no bit of the loss.
    Integers and bools are far from either. `largest` finds the largest of all weights, of which these may be a part.
    """
    if weight is None:
        return None
    if reduction == "mean" and weight.is_floating_point():
        weight = weight if weight.dtype == torch.float64 else weight.to(dtype)
        weight = weight / power_of_2_below(largest(weight))
    return weight.to(dtype)


def power_of_2_below(number: Tensor) -> Tensor:
    """Return the largest power of 2 <= a number >= 0; at least the smallest normal one, NaN for inf and NaN.

    By functions that torch.vmap and torch.compile know in every version of torch that we promise, and exact where quotients are.
    """
    number = number.clamp_min(torch.finfo(number.dtype).tiny)
    return number / (2 * torch.frexp(number).mantissa)


def reduce_videos(losses: Tensor, reduction: str) -> Tensor:
    """Reduce the losses (B,) of single videos."""
    return {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()


def video_scale(grad_loss: Tensor, reduction: str, videos: int) -> Tensor:
    """Return the derivative of `reduce_videos` times the upstream gradient, (B,)."""
    scale = grad_loss / videos if reduction == "mean" else grad_loss
    return scale.expand(videos)


def reduce_tokens(values: Tensor, token_weight: Tensor | None, reduction: str) -> Tensor:
    """Reduce the losses of single tokens: `sum a_i v_i / sum a_i` for "mean"."""
    if token_weight is not None:
        values = token_weight * values
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.mean() if token_weight is None else values.sum() / token_weight.sum()


def token_scale(grad_loss: Tensor, token_weight: Tensor | None, reduction: str, shape: tuple[int, ...]) -> Tensor:
    """Return d loss / d v_i, the derivative of `reduce_tokens`, times the upstream gradient."""
    scale = grad_loss
    if reduction == "mean":
        scale = scale / (torch.Size(shape).numel() if token_weight is None else token_weight.sum())
    if token_weight is not None:
        scale = scale * token_weight
    return scale.expand(shape)


def next_power_of_2(number: int) -> int:
    """Return the least power of 2 >= a positive number.

    Not Triton's own, because kernel counts need no Triton.
    """
    return 1 << (number - 1).bit_length()
