"""Tiles of a video's tokens, pairs of tiles, and the weights of their frames, for the token relation kernels."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.triton_blocks import dot, load_channels
from . import triton_configs as configs
from .options import RelationOptions

#: Rows of tiles adjacent in launch order, so that their common columns are read from the L2 cache.
GROUP: tl.constexpr = tl.constexpr(4)


@triton.jit
def block_index(row, column, first, tiles):
    """Return the index of block (row, column) from row `first` on, where each row begins at the diagonal."""
    row = tl.cast(row, tl.int64)
    return (row - first) * (2 * tiles - first - row + 1) // 2 + (column - row)


@triton.jit
def pair_of_tiles(program, first, end, tiles):
    """Return the pair of tiles of a program, among those with first <= row < end and column >= row.

    The a-th row is followed by the a-th from the end: all such couples are equally long, so a
    rectangle of programs covers them. Surplus programs get column = tiles.
    """
    width = 2 * tiles - first - end + 1
    a = program // (GROUP * width) * GROUP + program % GROUP
    step = program % (GROUP * width) // GROUP
    top, bottom = first + a, end - 1 - a
    upper = step < tiles - top
    row = tl.where(upper, top, bottom)
    column = row + tl.where(upper, step, step - (tiles - top))
    wanted = (top < bottom) | ((top == bottom) & upper)
    return row, tl.where(wanted, column, tiles)


@triton.jit
def token_offsets(token, frame_tokens, stride, INDEX: tl.constexpr):
    """Return the offsets of tokens, numbered through the video, from its first element."""
    return (token // frame_tokens).to(INDEX) * stride[1] + (token % frame_tokens).to(INDEX) * stride[2]


@triton.jit
def gram(video, stride, i, j, tokens, frame_tokens, C: tl.constexpr, BLOCK_C: tl.constexpr, OPERAND: tl.constexpr,
          ACC: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """Return < f_i, f_j > of the tokens i and j; 0 past the last token."""
    rows, columns = token_offsets(i, frame_tokens, stride, INDEX), token_offsets(j, frame_tokens, stride, INDEX)
    z = tl.zeros((i.shape[0], j.shape[0]), ACC)
    for c0 in range(0, C, BLOCK_C):
        a = load_channels(video, rows, i < tokens, c0, C, BLOCK_C)
        b = load_channels(video, columns, j < tokens, c0, C, BLOCK_C)
        z = dot(a, tl.trans(b), z, OPERAND)
    return z


@triton.jit
def scaled(z, reciprocal_norms, i, j, tokens):
    z *= tl.load(reciprocal_norms + i, mask=i < tokens, other=0.0)[:, None]
    return z * tl.load(reciprocal_norms + j, mask=j < tokens, other=0.0)[None, :]


@triton.jit
def _corner_weights(weight, row, column, frames, frame_tokens, TILE: tl.constexpr):
    """Return c of the frames of the first and last tokens of both tiles."""
    last = frames * frame_tokens - 1
    f, f_last = row * TILE // frame_tokens, tl.minimum(row * TILE + TILE - 1, last) // frame_tokens
    g, g_last = column * TILE // frame_tokens, tl.minimum(column * TILE + TILE - 1, last) // frame_tokens
    near, far = weight + f * frames, weight + f_last * frames
    return tl.load(near + g), tl.load(near + g_last), tl.load(far + g), tl.load(far + g_last)


@triton.jit
def pair_weights(weight, row, column, frames, frame_tokens, TILE: tl.constexpr, LARGE_FRAMES: tl.constexpr):
    """Return c[f_i, f_j] (TILE, TILE).

    Tiles no larger than a frame touch at most two, and four numbers give all of it.
    """
    i, j = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE)
    if LARGE_FRAMES:
        near_near, near_far, far_near, far_far = _corner_weights(weight, row, column, frames, frame_tokens, TILE)
        i_near = i < (row * TILE // frame_tokens + 1) * frame_tokens
        j_near = j < (column * TILE // frame_tokens + 1) * frame_tokens
        # Rows first: a thread holds a few rows, but a quarter of the columns.
        near, far = tl.where(i_near, near_near, far_near), tl.where(i_near, near_far, far_far)
        return tl.where(j_near[None, :], near[:, None], far[:, None])
    else:
        f, g = i // frame_tokens, j // frame_tokens
        mask = (f < frames)[:, None] & (g < frames)[None, :]
        return tl.load(weight + f[:, None] * frames + g[None, :], mask=mask, other=0.0)


@triton.jit
def any_weight(weight, row, column, frames, frame_tokens, TILE: tl.constexpr, LARGE_FRAMES: tl.constexpr):
    if LARGE_FRAMES:
        a, b, c, d = _corner_weights(weight, row, column, frames, frame_tokens, TILE)
        return (a != 0) | (b != 0) | (c != 0) | (d != 0)
    else:
        w = pair_weights(weight, row, column, frames, frame_tokens, TILE, LARGE_FRAMES)
        return tl.sum(tl.sum((w != 0).to(tl.int32), 1), 0) > 0


@triton.jit
def reach(weight, tile, frames, frame_tokens, TILE: tl.constexpr, FRAMES: tl.constexpr):
    """Return the range begin .. end - 1 of tiles that holds all frames with a weight to a frame of this tile."""
    g = tl.arange(0, FRAMES)
    tokens = frames * frame_tokens
    begin, end = tokens, 0
    for f in range(tile * TILE // frame_tokens, tl.minimum(tile * TILE + TILE - 1, tokens - 1) // frame_tokens + 1):
        used = tl.load(weight + f * frames + g, mask=g < frames, other=0.0) != 0
        begin = tl.minimum(begin, tl.min(tl.where(used, g * frame_tokens, tokens), 0))
        end = tl.maximum(end, tl.max(tl.where(used, (g + 1) * frame_tokens, 0), 0))
    return begin // TILE, tl.cdiv(end, TILE)


class Pairs(NamedTuple):
    """The arguments of the kernels: features (B, F, N, C), reciprocal norms (B, F, N), symmetric weights (F, F)."""

    student: Tensor
    teacher: Tensor
    student_norms: Tensor
    teacher_norms: Tensor
    weight: Tensor
    options: RelationOptions

    @property
    def accumulate(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def operands(self) -> list[torch.dtype]:
        return [launch.operand_type(features.dtype, self.accumulate) for features in (self.student, self.teacher)]

    @property
    def widest(self) -> torch.dtype:
        return max(self.operands, key=lambda operand: operand.itemsize)

    @property
    def tile(self) -> int:
        return configs.relation_tile(self.widest, self.student.shape[2])

    @property
    def tiles(self) -> int:
        _, frames, N, _ = self.student.shape
        return triton.cdiv(frames * N, self.tile)

    @property
    def padded_frames(self) -> int:
        """The frames, padded to a power of two that most videos share, because a kernel is compiled for each."""
        return max(64, triton.next_power_of_2(self.student.shape[1]))

    @property
    def index(self) -> tl.dtype:
        """An integer type that holds every offset within a video."""
        return launch.index_type(self.student.unsqueeze(1), self.teacher.unsqueeze(1))
