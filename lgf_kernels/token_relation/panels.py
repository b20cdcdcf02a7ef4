"""Token relations in panels of stored coefficients: what the backends that have kernels of their own share.

The n tokens of a video are cut into tiles. The gradient is a product of coefficients, one for each pair of tokens, and
the features. The coefficients are symmetric, and blocks of them, one for each pair of tiles (row, column >= row), are
stored, multiplied and overwritten by the next, as many rows of tiles at a time as fit in a budget: a panel.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core import gpu
from ..core.numerics import video_scale

#: Programs that share the sum of a tile, at most: each writes a gradient of its own.
MOST_SPLITS = 8


class Panel(NamedTuple):
    """Rows first .. end - 1 of tiles of some videos, whose blocks of coefficients exist at the same time."""

    videos: slice
    first: int
    end: int

    def blocks(self, tiles: int) -> int:
        """Of one video: of each row those from the diagonal on."""
        return (self.end - self.first) * (2 * tiles - self.first - self.end + 1) // 2


class Pairs(Protocol):
    """The features of a call, cut into tiles of so many tokens."""

    tile: int
    tiles: int

    def of(self, videos: slice) -> "Pairs": ...


class Kernels(NamedTuple):
    """The three steps of a panel."""

    distances: Callable[[Pairs, Panel, Tensor, Tensor | None], None]
    """The sum of each pair of tiles, and their coefficients if asked for."""
    products: Callable[[Pairs, Panel, Tensor, Tensor], Tensor]
    """The panel's part of the gradient, added to it, or where one panel is all in parts to be summed."""
    project: Callable[[Pairs, Tensor, Tensor], None]
    """The gradient from its parts, less what lies along the features."""


def panels(videos: int, tiles: int, budget: int) -> Iterator[Panel]:
    """Cut what has to be stored into panels of at most `budget` blocks, or of one row if that is more."""
    together = budget // Panel(slice(0), 0, tiles).blocks(tiles)
    if together:
        yield from (Panel(slice(b, min(b + together, videos)), 0, tiles) for b in range(0, videos, together))
        return
    for b in range(videos):
        first = 0
        while first < tiles:
            end = first + 1
            while end < tiles and Panel(slice(0), first, end + 1).blocks(tiles) <= budget:
                end += 1
            yield Panel(slice(b, b + 1), first, end)
            first = end


def run(kernels: Kernels, pairs: Pairs, dtype: torch.dtype, sums: Tensor, gradient: Tensor | None) -> None:
    """Fill the sums (videos, pairs of tiles) and, unless None, the gradient, a panel of type `dtype` after the other."""
    if gradient is None:
        kernels.distances(pairs, Panel(slice(0, len(sums)), 0, pairs.tiles), sums, None)
        return
    budget = scratch_bytes() // (pairs.tile**2 * dtype.itemsize)
    todo = list(panels(len(sums), pairs.tiles, budget))
    blocks = max((p.videos.stop - p.videos.start) * p.blocks(pairs.tiles) for p in todo)
    coefficients = gradient.new_empty((blocks, pairs.tile, pairs.tile), dtype=dtype)
    for panel in todo:
        part, out = pairs.of(panel.videos), gradient[panel.videos]
        kernels.distances(part, panel, sums[panel.videos], coefficients)
        parts = kernels.products(part, panel, coefficients, out)
        if panel.end == pairs.tiles:
            kernels.project(part, parts, out)


def room_for_parts(gradient: Tensor, panel: Panel, tiles: int, programs: int, side_by_side: int) -> Tensor:
    """Where `products` writes, (splits, videos, ...): the gradient itself, or as many parts as fill a GPU.

    Few tiles do not: `programs` of a launch that has room for so many `side_by_side`. Then several programs share the
    sum of a tile, each with a part of its own to write, which takes a panel that is all.
    """
    splits = min(side_by_side // programs, MOST_SPLITS, tiles) if panel == panel._replace(first=0, end=tiles) else 1
    return gradient.new_empty((splits, *gradient.shape)) if splits > 1 else gradient[None]


def scratch_bytes() -> int:
    """The most that token relations store of their coefficients at a time: LGF_SCRATCH_MIB mebibytes, or 1 GiB."""
    return gpu.scratch_bytes(1024)


def backward(grad_loss: Tensor, residual: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """The gradient of each video's own loss times the upstream one, which is read on the device, rounded once."""
    scale = video_scale(grad_loss, reduction, len(residual)).view(-1, 1, 1, 1)
    return torch.mul(residual, scale, out=torch.empty_like(residual, dtype=dtype))
