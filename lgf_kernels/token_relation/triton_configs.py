"""Tile sizes and scheduling of the Triton kernels, as a table made ahead of time.

The choice depends on the architecture, the type, the channels and whether frames are small, never
on their number: a Triton kernel takes seconds to compile, and a new resolution must not cost that.
The first row of each entry runs; LGF_AUTOTUNE=1 times the others against it. The first rows were
chosen by their compiled code (`make kernel-report`): no spilled registers on Hopper with 256
channels or more. They have not been timed yet.
"""

from typing import NamedTuple

import torch

from ..core.numerics import next_power_of_2


class Distances(NamedTuple):
    """Distances of a pair of tiles, BLOCK_C channels at a time."""

    BLOCK_C: int
    num_warps: int
    num_stages: int


class Products(NamedTuple):
    """Products of a tile's coefficients with BLOCK_K tokens at a time, for BLOCK_C channels of the gradient."""

    BLOCK_K: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


#: By bytes of an operand: the most tokens of a tile whose two Grams fit in registers, for frames of
#: at least as many tokens, and for smaller frames, where a weight for each pair takes registers
#: too.
RELATION_TILES = {2: (128, 64), 4: (64, 64), 8: (32, 32)}

#: By bytes of an operand.
DISTANCES = {
    2: [Distances(64, 8, 4), Distances(128, 8, 2), Distances(64, 8, 2), Distances(64, 8, 3)],
    4: [Distances(32, 4, 2), Distances(32, 8, 2), Distances(32, 8, 3)],
    8: [Distances(16, 4, 1)],
}
PRODUCTS = {
    2: [Products(64, 256, 8, 3), Products(64, 256, 8, 4), Products(64, 128, 8, 3), Products(32, 256, 8, 4)],
    4: [Products(32, 64, 4, 2), Products(32, 128, 8, 2), Products(32, 64, 8, 3)],
    8: [Products(16, 32, 4, 1)],
}


def relation_tile(operand: torch.dtype, frame_tokens: int) -> int:
    """Return the tokens of a tile, for products of type `operand` and frames of `frame_tokens` tokens."""
    large, small = RELATION_TILES[operand.itemsize]
    return large if frame_tokens >= large else small


def distances(channels: int, operand: torch.dtype, architecture: int) -> list[Distances]:
    """Return the configurations for features of at most `channels` channels."""
    most = max(16, next_power_of_2(channels))
    return [row._replace(BLOCK_C=min(row.BLOCK_C, most)) for row in DISTANCES[operand.itemsize]]


def products(channels: int, operand: torch.dtype, tile: int, architecture: int) -> list[Products]:
    """Return the configurations for a gradient of `channels` channels."""
    most = max(16, next_power_of_2(channels))
    return [
        row._replace(BLOCK_K=min(row.BLOCK_K, tile), BLOCK_C=min(row.BLOCK_C, most))
        for row in PRODUCTS[operand.itemsize]
    ]
