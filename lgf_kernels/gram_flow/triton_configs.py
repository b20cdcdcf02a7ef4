"""Tile sizes and scheduling of the Triton kernels, as a table made ahead of time.

The choice depends on the architecture, the type, the window, the channels and whether there are
teachers, never on T, H and W: a Triton kernel takes seconds to compile, and a new resolution must
not cost that. The first row of each entry runs; LGF_AUTOTUNE=1 times the others against it. The
first rows were chosen by their compiled code (`make kernel-report`): next to no spilled registers
on Ampere, Hopper and Blackwell with a window of 7. They have not been timed yet.
"""

import functools
from typing import NamedTuple

import torch

from ..core.numerics import next_power_of_2

#: Tile sizes, and the most tokens of a padded halo, whose logits fit in registers.
TILES = ((8, 8), (4, 8), (4, 4))
MAX_HALO = 256


class Forward(NamedTuple):
    """A tile of queries against its whole halo, BLOCK_C channels at a time."""

    TILE_H: int
    TILE_W: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


class Backward(NamedTuple):
    """A tile of tokens against ROWS rows of its halo at a time, for BLOCK_C channels of the gradient at a time."""

    TILE_H: int
    TILE_W: int
    ROWS: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


#: By bytes of an operand. One Gram takes half the registers of several: 4 warps hold it, and two
#: programs share an SM.
FORWARD = {
    2: [Forward(8, 8, 64, 8, 2), Forward(8, 8, 32, 8, 2), Forward(8, 8, 64, 8, 3), Forward(8, 8, 64, 4, 2)],
    4: [Forward(4, 8, 16, 8, 2), Forward(8, 8, 16, 8, 2), Forward(4, 8, 32, 8, 2)],
    8: [Forward(4, 4, 16, 8, 1)],
}
FORWARD_ONE_GRAM = {
    (90, 2): [Forward(8, 8, 64, 4, 2), Forward(8, 8, 32, 4, 2), Forward(8, 8, 64, 8, 2), Forward(8, 8, 64, 8, 3)],
}
BACKWARD = {
    2: [Backward(8, 8, 4, 256, 8, 2), Backward(8, 8, 2, 256, 8, 3), Backward(8, 8, 4, 128, 8, 2)],
    4: [Backward(4, 8, 2, 64, 8, 2), Backward(8, 8, 2, 64, 8, 1)],
    8: [Backward(4, 4, 2, 16, 8, 1)],
}
#: For products that are computed twice (cosine similarity, more channels than a block): values kept
#: in between take registers.
BACKWARD_TWO_PASSES = {
    2: [Backward(8, 8, 4, 128, 8, 2), Backward(8, 8, 4, 64, 8, 2), Backward(8, 8, 8, 128, 8, 2)],
}


@functools.cache
def forward(window: int, channels: int, teachers: int, operand: torch.dtype, architecture: int) -> list[Forward]:
    """Return configurations for the Grams of a student and `teachers` teachers of at most `channels` channels."""
    rows = FORWARD[operand.itemsize]
    if teachers == 0:
        rows = FORWARD_ONE_GRAM.get((architecture, operand.itemsize), rows)
    return [fitted(row, window, channels) for row in rows]


@functools.cache
def backward(window: int, channels: int, operand: torch.dtype, architecture: int) -> list[Backward]:
    """Return configurations for the gradient by features of `channels` channels, with products of type `operand`."""
    rows = BACKWARD[operand.itemsize]
    if channels > rows[0].BLOCK_C:
        rows = BACKWARD_TWO_PASSES.get(operand.itemsize, rows)
    return [fitted(row, window, channels) for row in rows]


def fitted(row, window: int, channels: int):
    """Return the row with its tile reduced until the halo fits in registers, and its block to the channels."""
    height, width = next(tile for tile in TILES if tile[0] <= row.TILE_H and tile[1] <= row.TILE_W and (
        halo_size(tile, window) <= MAX_HALO or tile == TILES[-1]))  # fmt: skip
    return row._replace(TILE_H=height, TILE_W=width, BLOCK_C=min(row.BLOCK_C, max(16, next_power_of_2(channels))))


def halo_size(tile: tuple[int, int], window: int) -> int:
    return next_power_of_2(tile[0] + window - 1) * next_power_of_2(tile[1] + window - 1)


@functools.cache
def slot_row(window: int) -> int:
    """Return the slots of a row of the window: K, padded to a power of two."""
    return max(4, next_power_of_2(window))
