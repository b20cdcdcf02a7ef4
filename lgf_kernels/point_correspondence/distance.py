"""From predicted places to the loss, and back to the gradient of the places: what every backend shares."""

import torch
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, divided_by_norm, non_finite_to_nan, relative_weight
from .options import PointOptions


def places_shape(features: Tensor, queries: Tensor) -> tuple[int, ...]:
    """(B, N, T, 2)."""
    return (*queries.shape[:2], features.shape[1], 2)


def state_shape(features: Tensor, queries: Tensor, window: int | None) -> tuple[int, ...]:
    """(B, N, T, 1), or 2 with a window."""
    return (*places_shape(features, queries)[:3], 1 if window is None else 2)


def empty_places(features: Tensor, queries: Tensor) -> Tensor:
    """Room for the places, in the accumulation type."""
    return features.new_empty(places_shape(features, queries), dtype=accumulate_dtype(features))


def empty_state(features: Tensor, queries: Tensor, window: int | None) -> Tensor:
    """Room for what a forward keeps beside the places: the logarithm of the softmax's sum, lse, and with a window the number
    of the token that it is around."""
    return features.new_empty(state_shape(features, queries, window), dtype=accumulate_dtype(features))


def token_places(features: Tensor) -> Tensor:
    """r, (H*W, 2): the row and column of each token of a frame, in the accumulation type."""
    H, W = features.shape[2:4]
    places = torch.arange(H * W, device=features.device)
    return torch.stack([places // W, places % W], -1).to(accumulate_dtype(features))


def window_mask(peak: Tensor, places: Tensor, window: int) -> Tensor:
    """bool (..., H*W): the tokens at most `window` rows and columns from the one numbered `peak` (...)."""
    return ((places - places[peak][..., None, :]).abs() <= window).all(-1)


def with_exact_ties(features: Tensor, window: int | None) -> Tensor:
    """Return features to search by kernels that multiply products by reciprocal norms.

    Tokens of one channel are all alike but for their sign, so that the best match is the first of its sign. But x times
    1 / |x|, rounded, is not always 1, where x / |x| is: with one channel and a window the features are divided here.
    """
    if window is None or features.shape[-1] > 1:
        return features
    unit, norm = divided_by_norm(features.to(accumulate_dtype(features)))
    return torch.where(norm < EPS, features, unit.to(features.dtype))


def used_weight(queries: Tensor, weight: Tensor | None, frames: int, dtype: torch.dtype, reduction: str) -> Tensor:
    """w, (B, N, T), 1 if None; 0 in a query's own frame. Contiguous, so that strides decide no order of a sum."""
    elsewhere = queries[..., :1] != torch.arange(frames, device=queries.device)
    if weight is None:
        weight = elsewhere
    else:  # torch.where of torch 2.11 takes no uint16, uint32 or uint64
        weight = torch.where(elsewhere, weight if weight.is_floating_point() else weight.to(dtype), 0)
    return relative_weight(weight, dtype, reduction).contiguous()


def directions(difference: Tensor) -> Tensor:
    """Return the differences (..., 2) as vectors of length 1; 0 for 0.

    Divided by the larger part first, of which no square overflows or vanishes.
    """
    largest = difference.abs().amax(-1, keepdim=True)
    part = difference / largest.where(largest != 0, 1)
    length = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
    return part / length.where(length != 0, 1)


def distances(difference: Tensor, direction: Tensor) -> Tensor:
    """Return e (...) of differences (..., 2); its derivative is the direction, a constant."""
    return (difference * direction).sum(-1)


def near(e: Tensor, options: PointOptions) -> Tensor:
    """Return the part of e before "huber" goes over to a line. A type's largest number stands for what is beyond it."""
    return e.clamp(max=min(options.delta, torch.finfo(e.dtype).max))


def point_losses(places: Tensor, targets: Tensor, w: Tensor, options: PointOptions) -> Tensor:
    """w l, (B, N, T); inf for what is beyond the type. Where w is 0 nothing is read, be it NaN; a weight of inf gives NaN."""
    used = w != 0
    difference = torch.where(used[..., None], places - targets.to(places.dtype), 0)
    e = distances(difference, directions(difference.detach()))
    if options.distance == "huber":
        # e^2 / 2 up to delta, delta (e - delta / 2) beyond, without the square of a large e.
        e = near(e, options) * (e - near(e, options) / 2)
    return torch.where(used, non_finite_to_nan(w) * e, 0)


def reduced(places: Tensor, queries: Tensor, targets: Tensor, weight: Tensor | None, options: PointOptions) -> Tensor:
    """The loss of the places (B, N, T, 2): `sum w l / sum w` for "mean"."""
    w = used_weight(queries, weight, places.shape[2], places.dtype, options.reduction)
    values = point_losses(places, targets, w, options)
    if options.reduction == "none":
        return values
    if options.reduction == "sum":
        return values.sum()
    # Divided first: the sum of far targets may overflow where their mean does not. Nothing over nothing is NaN.
    total = w.sum()
    return torch.where(total == 0, torch.nan, (values / total).sum())


def places_gradient(
    grad_loss: Tensor, places: Tensor, queries: Tensor, targets: Tensor, weight: Tensor | None, options: PointOptions
) -> Tensor:
    """g, (B, N, T, 2): the derivative of `reduced` with respect to the places, times the upstream gradient."""
    w = used_weight(queries, weight, places.shape[2], places.dtype, options.reduction)
    scale = grad_loss * w
    if options.reduction == "mean":
        scale = scale / w.sum()
    difference = places - targets.to(places.dtype)
    direction = directions(difference)
    if options.distance == "huber":
        scale = scale * near(distances(difference, direction), options)
    return torch.where(w[..., None] != 0, scale[..., None] * direction, 0)
