"""Functions of all backends of Local Gram Flow: the window, and what they keep for the backward."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.numerics import accumulate_dtype
from .options import LgfOptions


def window_mask(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """Return which offsets (dy, dx), row by row, of each token lie inside the frame, bool (H, W, K*K)."""
    offset = torch.arange(window, device=device) - window // 2
    y = torch.arange(height, device=device)[:, None] + offset
    x = torch.arange(width, device=device)[:, None] + offset
    inside_y = (y >= 0) & (y < height)
    inside_x = (x >= 0) & (x < width)
    return (inside_y[:, None, :, None] & inside_x[None, :, None, :]).reshape(height, width, window * window)


def pairs_shape(features: Tensor) -> tuple[int, ...]:
    """Return (B, T-1, H, W): one entry for each query token of features (B, T, H, W, C)."""
    B, T, H, W, _ = features.shape
    return (B, T - 1, H, W)


def reversed_logits(logits: Tensor) -> Tensor:
    """Return logits (B, T-1, H, W, K*K) of direction "backward" from those of direction "forward", or vice versa.

    Both hold the same products: that of query i in frame t+1 with key j = i + d in frame t is that
    of query j with key i = j - d. Positions outside the frame are 0 in both.
    """
    window = math.isqrt(logits.shape[-1])
    reach = window // 2
    reversed_offsets = logits.flip(-1).unflatten(-1, (window, window))  # [..., dy, dx] is now the offset (-dy, -dx)
    padded = pad(reversed_offsets, (0, 0, 0, 0, reach, reach, reach, reach))
    around = padded.unfold(2, window, 1).unfold(3, window, 1)  # (B, T-1, H, W, dy, dx, y of the key, x of the key)
    return around.diagonal(dim1=4, dim2=6).diagonal(dim1=4, dim2=5).flatten(-2).contiguous()


def empty_residual(student: Tensor, options: LgfOptions, needs_grad: bool) -> Tensor:
    """Allocate d KL_i / d zS, (directions, B, T-1, H, W, K*K), kept for the backward; empty unless `needs_grad`."""
    shape = (len(options.directions), *pairs_shape(student), options.window**2) if needs_grad else (0,)
    return student.new_empty(shape, dtype=accumulate_dtype(student))
