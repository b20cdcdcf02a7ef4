"""Several teachers, and their frames, as one teacher of each token; from the tokens' losses to the loss and its gradient.

With y_k = concat_m( share_m F_m[k] / max(||F_m[k]||, eps) ) and the weights of a frame f divided by their sum,

    T = sum_k c[f, k] / sum_k c[f, k]  y_k          the folded teacher of a token, no longer than 1
    r = < h / s, T >,  s = max(||h||, eps)
    l = (1 - r) sum_k c[f, k]
    G = r h / s - T,  dl/dh = G / s  sum_k c[f, k]   G = -T where ||h|| < eps

A backend computes 1 - r, 1 / s and, for a gradient, G, which it stores in the student's type: no element of G exceeds 1
by more than rounding, so that float16 neither overflows nor, under a scaled loss, underflows. The factor of each token,
with all weights in it, is kept apart in the accumulation type.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.numerics import accumulate_dtype, reduce_tokens, token_scale


class Tokens(NamedTuple):
    """What a backend's forward fills for student (B, F, H, W, C)."""

    distance: Tensor
    """1 - r, (B, F, H, W), in the accumulation type."""
    reciprocal: Tensor
    """1 / s, (B, F, H, W), in the accumulation type."""
    gradient: Tensor
    """G, contiguous, in the student's shape and type; empty without a gradient."""


def as_grid(tensor: Tensor, frames: bool) -> Tensor:
    """Return a tensor (..., C) with four dimensions before the channels; with `frames` the first two stay what they are."""
    first = 2 if frames else 0
    if tensor.ndim > 5:
        return tensor.flatten(first, first + tensor.ndim - 5)
    for _ in range(5 - tensor.ndim):
        tensor = tensor.unsqueeze(first)
    return tensor


def shares_of(weights: Sequence[float]) -> list[float]:
    """Return sqrt(w_m / sum w), the length of each teacher's part of y."""
    largest = max(weights)  # whose sum could overflow
    total = sum(weight / largest for weight in weights)
    return [math.sqrt(weight / largest / total) for weight in weights]


def empty_tokens(student: Tensor, needs_grad: bool) -> Tokens:
    distance = student.new_empty(student.shape[:-1], dtype=accumulate_dtype(student))
    gradient = student.new_empty(student.shape if needs_grad else (0,))
    return Tokens(distance, torch.empty_like(distance), gradient)


def empty_residual(student: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """Allocate what is kept for the backward: G, and the factor of each token; both empty unless `needs_grad`."""
    shape = student.shape[:-1] if needs_grad else (0,)
    tokens = empty_tokens(student, needs_grad)
    return tokens.gradient, tokens.distance.new_empty(shape)


def divided_by_sum(frame_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (F, K) with every row divided by its sum, and the sums (F, 1, 1); a row of zeros stays."""
    total = frame_weight.sum(1, keepdim=True)
    return torch.where(total != 0, frame_weight / total, 0).contiguous(), total.unsqueeze(-1)


def reduced(
    tokens: Tokens, total: Tensor | None, token_weight: Tensor | None, reduction: str, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss, and for a gradient the factor of each token, by which G is to be multiplied; else an empty tensor."""
    distance, reciprocal, _ = tokens
    if total is not None:
        distance = torch.where(total != 0, distance * total, 0)
    loss = reduce_tokens(distance, token_weight, reduction)
    if not needs_grad:
        return loss, reciprocal.new_empty(0)
    factor = reciprocal * token_scale(reciprocal.new_ones(()), token_weight, reduction, reciprocal.shape)
    return loss, factor if total is None else factor * total
