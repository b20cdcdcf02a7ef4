"""Squared token relation distances by products of channels: C x C sums for each frame, and no pairs of tokens.

    sum_{i in f, j in g} (S_Z - S_M)[i, j]^2 = < Z_f^T Z_f, Z_g^T Z_g > - 2 < Z_f^T M_f, Z_g^T M_g > + < M_f^T M_f, M_g^T M_g >
    dz^_i = 4 / N^2 * sum_g c[f_i, g] (Z_g^T Z_g z^_i - Z_g^T M_g m^_i)

The cost grows with n C^2 instead of n^2 C. The three terms are much larger than their sum where
student and teacher agree, so that all is computed in float64: what is left is the error of the
features, which were normalised in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .options import RelationOptions

#: How much longer a product takes in float64 on a CPU, with conversions and weighted sums, than the products of tiles: torch's,
#: or the CPU module's for AVX2; and than those for AVX-512. Measured where both ways take the same time.
FLOAT64, FLOAT64_AVX512 = 3, 5
#: Most elements of the sums of a few channels with all others, over all frames of the batch.
SUMS = 2**20


def is_faster(
    z: Tensor, m: Tensor, c: Tensor, options: RelationOptions, needs_grad: bool, isa: str | None = None
) -> bool:
    """Return whether this computes the call, of tokens (B, n, C) or (B, F, N, C), and faster than tiles of pairs, of the CPU
    module's `isa` or, if None, torch's.

    Only on a CPU: many GPUs are slow in float64. A float64 student would lose digits that tiles keep.
    """
    if not options.squared or options.negatives != "keep" or z.device.type != "cpu" or z.dtype == torch.float64:
        return False
    n, C, D = z.shape[1:-1].numel(), z.shape[-1], m.shape[-1]
    pairs = (c != 0).sum().item() * (n // len(c)) ** 2
    by_tiles = pairs * (C + D) + needs_grad * 2 * pairs * C
    by_channels = 2 * n * (C * C + C * D + D * D) + needs_grad * 2 * n * C * (C + D)
    return (FLOAT64_AVX512 if isa == "avx512" else FLOAT64) * by_channels < by_tiles


def losses(z: Tensor, m: Tensor, c: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the losses (B,) and, if `needs_grad`, the gradient dz^ (B, n, C) of tokens z (B, n, C) and m (B, n, C')."""
    dtype, N = z.dtype, z.shape[1] // len(c)
    gradient = torch.empty_like(z) if needs_grad else None
    if (c == c[0, 0]).all():
        c = c[:1, :1]  # all frames are one
    by_frames = (len(c), -1)
    # A frame without weight must not add NaN.
    used = (c != 0).any(1)[:, None, None]
    z, m = (torch.where(used, tokens.unflatten(1, by_frames), 0).double() for tokens in (z, m))
    c = c.double() / N**2
    total = z.new_zeros(len(z))
    for some in channels(z, m):
        of_z, weighted_z = sums(z[..., some], z, c)
        of_m, weighted_m = sums(z[..., some], m, c)
        total += inner(of_z, weighted_z) - 2 * inner(of_m, weighted_m)
        if needs_grad:
            gradient.unflatten(1, by_frames)[..., some] = 4 * (z @ weighted_z.mT - m @ weighted_m.mT)
    for some in channels(m, m):
        total += inner(*sums(m[..., some], m, c))
    return total.clamp_min(0).to(dtype), gradient


def channels(one: Tensor, other: Tensor) -> Iterator[slice]:
    """Cut the channels of `one` so that their sums with all those of both tensors fit in SUMS."""
    B, frames, _, C = one.shape
    step = max(1, SUMS // (B * frames * max(C, other.shape[-1])))
    return (slice(first, min(first + step, C)) for first in range(0, C, step))


def sums(some: Tensor, features: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over the tokens of each frame, (B, F, channels of `some`, C), and their sums weighted by c."""
    of_frames = some.mT @ features
    return of_frames, torch.einsum("fg,bgkc->bfkc", c, of_frames)


def inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((1, 2, 3))
