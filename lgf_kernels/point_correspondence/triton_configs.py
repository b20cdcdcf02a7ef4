"""How the kernels are cut and scheduled: a small table, made ahead of time.

The choice depends on the architecture, the type and the channels, never on the number of points, frames or tokens: a Triton
kernel takes seconds to compile. The first row of each entry is what runs; the others are what LGF_AUTOTUNE=1 times against it.
The first rows were chosen from what they compile to (`make kernel-report`): no spilled registers on Hopper. They have yet to be
timed.
"""

from typing import NamedTuple

import torch

from ..core.numerics import next_power_of_2


class Search(NamedTuple):
    """TILE_Q points against TILE_P tokens at a time, BLOCK_C channels at a time."""

    TILE_Q: int
    TILE_P: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


class Coefficients(NamedTuple):
    """A tile of points and TILE_P tokens, a part of its own, BLOCK_C channels at a time."""

    TILE_P: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


class Products(NamedTuple):
    """Coefficients of a tile by BLOCK_K points or tokens at a time, for BLOCK_C channels of a gradient."""

    BLOCK_K: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


#: By bytes of an operand. Of features with no more channels than BLOCK_C, the points of a tile are read once.
SEARCH = {
    2: [Search(128, 64, 256, 8, 2), Search(64, 64, 256, 4, 2), Search(128, 128, 64, 8, 3)],
    4: [Search(64, 64, 32, 8, 2), Search(64, 64, 32, 4, 2)],
    8: [Search(32, 32, 16, 4, 1)],
}
#: The same where the features have more channels.
SEARCH_IN_BLOCKS = {2: [Search(128, 128, 64, 8, 3), Search(128, 64, 64, 4, 3)]}
#: Points and tokens of a tile of coefficients, by their bytes.
TILES = {2: 128, 4: 64, 8: 32}
COEFFICIENTS = {
    2: [Coefficients(64, 64, 8, 3), Coefficients(64, 64, 4, 3), Coefficients(128, 64, 8, 3)],
    4: [Coefficients(64, 32, 4, 2), Coefficients(32, 32, 4, 2)],
    8: [Coefficients(32, 16, 4, 1)],
}
#: The same on Hopper without a window, whose masks take registers: larger tiles read less from the L2 cache.
WIDE_COEFFICIENTS = {2: [Coefficients(128, 64, 8, 3), Coefficients(64, 64, 8, 3)]}
PRODUCTS = {
    2: [Products(64, 128, 8, 3), Products(64, 256, 8, 3), Products(32, 256, 8, 4)],
    4: [Products(32, 64, 4, 2), Products(32, 128, 8, 2)],
    8: [Products(16, 32, 4, 1)],
}
#: The same from Hopper on, for tokens: sums over frames and tokens take more registers.
PRODUCTS_FOR_TOKENS = {2: [Products(64, 256, 8, 3), Products(64, 128, 8, 3)]}


def search(channels: int, operand: torch.dtype, architecture: int) -> list[Search]:
    """Return the rows for features of so many channels, multiplied in this type."""
    most = max(16, next_power_of_2(channels))
    rows = SEARCH[operand.itemsize]
    if rows[0].BLOCK_C < channels:
        rows = SEARCH_IN_BLOCKS.get(operand.itemsize, rows)
    return [row._replace(BLOCK_C=min(row.BLOCK_C, most)) for row in rows]


def coefficients(channels: int, operand: torch.dtype, windowed: bool, architecture: int) -> list[Coefficients]:
    """Return the rows for coefficients of this type, from features of so many channels."""
    most, tile = max(16, next_power_of_2(channels)), TILES[operand.itemsize]
    rows = COEFFICIENTS[operand.itemsize]
    if architecture == 90 and not windowed:
        rows = WIDE_COEFFICIENTS.get(operand.itemsize, rows)
    return [row._replace(TILE_P=min(row.TILE_P, tile), BLOCK_C=min(row.BLOCK_C, most)) for row in rows]


def products(channels: int, operand: torch.dtype, for_tokens: bool, architecture: int) -> list[Products]:
    """Return the rows for a gradient of so many channels, from coefficients of this type."""
    most, tile = max(16, next_power_of_2(channels)), TILES[operand.itemsize]
    rows = PRODUCTS[operand.itemsize]
    if architecture >= 90 and for_tokens:
        rows = PRODUCTS_FOR_TOKENS.get(operand.itemsize, rows)
    return [row._replace(BLOCK_K=min(row.BLOCK_K, tile), BLOCK_C=min(row.BLOCK_C, most)) for row in rows]
