"""Token relation distances by tiles of the upper triangle, without an n x n matrix.

    E[i, j] = softshrink( S_Z[i, j] - S_M[i, j], margin )                   D = |E| or E^2
    loss_b = sum_{f, g} c[f, g] / N^2 * sum_{i in f, j in g} D[i, j]
    dz^_i = 2 / N^2 * sum_j c[f_i, f_j] D'[i, j] z^_j                       D' = sign(E) or 2 E

Where negative similarities of the student are clamped, D' is 0.

A tile is a block of queries i by a block of keys j, for all videos of the batch at once. D and the
gradient's coefficients are symmetric, so a tile right of the diagonal counts twice in the loss; it
contributes to the gradient of its queries and, transposed, to that of its keys. The forward
computes loss and gradient together: the upstream gradient is one number a video, by which the
backward scales the result. Squares without clamping may need no tiles at all (`channel_grams`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.numerics import (
    accumulate_dtype,
    divided_by_norm,
    non_finite_to_nan,
    normalised_gradient,
    reduce_videos,
    video_scale,
)
from ..core.registry import Implementation
from . import channel_grams
from .options import RelationOptions

#: Most tokens on a side of a tile. Tiles of a few hundred keep torch's products near peak speed and
#: their temporaries in cache.
TILE_TOKENS = 1024
#: Most tokens of a group of small frames; fewer where some weights are 0 and can be read, so that
#: more tiles are skipped.
GROUP_TOKENS, GROUP_TOKENS_SPARSE = 512, 128
#: Most elements of a tile over the whole batch.
TILE_ELEMENTS = 2**22


@dataclass(frozen=True)
class Block:
    """Successive tokens of one video: whole frames, or a part of a single frame."""

    tokens: slice
    frames: slice

    @property
    def frame_count(self) -> int:
        return self.frames.stop - self.frames.start


def forward(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the gradient of each video's own loss (B, F, N, C).

    student (B, F, N, C), teacher (B, F, N, C'), pair_weight (F, F).
    """
    dtype = accumulate_dtype(student)
    z, m = (features.to(dtype).flatten(1, 2) for features in (student, teacher))
    norm = None
    if options.cosine:
        (z, norm), (m, _) = divided_by_norm(z), divided_by_norm(m)
    # The distances are symmetric, so only the symmetric part of the weights matters.
    c = ((pair_weight + pair_weight.mT) / 2).to(dtype)
    if channel_grams.is_faster(z, m, c, options, needs_grad):
        losses, gradient = channel_grams.losses(z, m, c, needs_grad)
    else:
        losses, gradient = losses_by_tiles(z, m, c, options, needs_grad)
    loss = reduce_videos(non_finite_to_nan(losses), options.reduction)
    if gradient is None:
        return loss, loss.new_empty(0)
    return loss, normalised_gradient(gradient, z, norm).view(student.shape)


def losses_by_tiles(
    z: Tensor, m: Tensor, c: Tensor, options: RelationOptions, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the losses (B,) and, if `needs_grad`, the gradient dz^ (B, n, C)."""
    frames, N = len(c), z.shape[1] // len(c)
    losses = z.new_zeros(len(z))
    gradient = torch.zeros_like(z) if needs_grad else None
    for rows, columns in tiles(frames, N, len(z), c):
        weight = c[rows.frames, columns.frames] / N**2
        difference, kept = differences(z, m, rows.tokens, columns.tokens, options)
        if options.margin > 0:
            difference = F.softshrink(difference, options.margin)
        sums = sum_of_distances(by_frames(difference, rows, columns), options)
        distance = torch.where(weight != 0, weight * sums, 0).sum((1, 2))
        losses += distance if rows == columns else 2 * distance
        if needs_grad:
            slope = difference.mul_(2) if options.squared else difference.sign_()
            if kept is not None:
                slope.mul_(kept)
            by_frames(slope, rows, columns).mul_(2 * weight[:, None, :, None])
            gradient[:, rows.tokens].baddbmm_(slope, z[:, columns.tokens])
            if rows != columns:
                gradient[:, columns.tokens].baddbmm_(slope.mT, z[:, rows.tokens])
    return losses, gradient


def differences(
    z: Tensor, m: Tensor, rows: slice, columns: slice, options: RelationOptions
) -> tuple[Tensor, Tensor | None]:
    """Return S_Z - S_M of a tile after clamping and, where the student is clamped, which of its similarities are kept."""
    difference = z[:, rows] @ z[:, columns].mT
    if not options.clamps_teacher:
        return difference.baddbmm_(m[:, rows], m[:, columns].mT, alpha=-1), None
    kept = difference >= 0 if options.clamps_student else None
    if kept is not None:
        difference.mul_(kept)
    teacher = m[:, rows] @ m[:, columns].mT
    return difference.sub_(teacher.mul_(teacher >= 0)), kept


def backward(grad_loss: Tensor, residual: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    return (residual * video_scale(grad_loss, reduction, len(residual)).view(-1, 1, 1, 1)).to(dtype)


def empty_residual(student: Tensor, needs_grad: bool) -> Tensor:
    """Allocate the gradient that `forward` keeps for `backward`, empty unless `needs_grad`."""
    return student.new_empty(student.shape if needs_grad else (0,), dtype=accumulate_dtype(student))


def tiles(frames: int, tokens_per_frame: int, videos: int, c: Tensor) -> Iterator[tuple[Block, Block]]:
    """Yield the tiles on and right of the diagonal with a weight of c that is not 0.

    Only weights on the CPU are read: elsewhere that would make the host wait for the device. A tile
    of weight 0 adds 0.
    """
    used = (c != 0).tolist() if c.device.type == "cpu" else None
    dense = used is None or all(map(all, used))
    blocks = token_blocks(frames, tokens_per_frame, videos, GROUP_TOKENS if dense else GROUP_TOKENS_SPARSE)
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            if used is None or any(any(row[columns.frames]) for row in used[rows.frames]):
                yield rows, columns


def token_blocks(frames: int, tokens_per_frame: int, videos: int, group_tokens: int) -> list[Block]:
    """Cut a video into blocks of a tile's side: several small frames together, or a large frame into equal parts."""
    N = tokens_per_frame
    side = max(1, min(TILE_TOKENS, int((TILE_ELEMENTS / videos) ** 0.5)))
    group = max(1, min(group_tokens, side) // N)
    parts = -(-N // side)
    blocks = []
    for f in range(0, frames, group):
        stop = min(f + group, frames)
        length = (stop - f) * N
        bounds = [f * N + length * i // parts for i in range(parts + 1)]
        blocks += [Block(slice(a, b), slice(f, stop)) for a, b in itertools.pairwise(bounds)]
    return blocks


def by_frames(tile: Tensor, rows: Block, columns: Block) -> Tensor:
    """Return the view (B, frames, tokens, frames, tokens) of a tile (B, tokens, tokens)."""
    return tile.unflatten(2, (columns.frame_count, -1)).unflatten(1, (rows.frame_count, -1))


def sum_of_distances(per_frame: Tensor, options: RelationOptions) -> Tensor:
    """Return sum |x|, or of squares, over the tokens of each pair of frames, (B, frames, frames).

    Rows are summed first, which keeps float32 accurate enough. `vector_norm(ord=1)` would need no
    copy of |x|, but is several times slower on a CPU.
    """
    return (per_frame.square() if options.squared else per_frame.abs()).sum(4).sum(2)


token_relation = Implementation(forward, backward, empty_residual)
