"""Token relations in panels of stored coefficients, for the backends with kernels of their own.

The n tokens of a video are cut into tiles. The gradient is a product of coefficients, one for each
pair of tokens, with the features. The coefficients are symmetric: a block of them is stored for
each pair of tiles (row, column >= row). A panel is as many rows of tiles as fit in a budget; the
blocks of one panel are computed, multiplied, and overwritten by those of the next.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core import gpu
from ..core.numerics import video_scale

#: Most programs that share the sum of a tile. Each writes a partial gradient.
MAX_SPLITS = 8


class Panel(NamedTuple):
    """Rows first .. end - 1 of tiles of some videos, whose blocks of coefficients are stored at the same time."""

    videos: slice
    first: int
    end: int

    def blocks(self, tiles: int) -> int:
        """Return the number of blocks of one video: in each row those from the diagonal on."""
        return (self.end - self.first) * (2 * tiles - self.first - self.end + 1) // 2


class Pairs(Protocol):
    """The features of a call, cut into `tiles` tiles of `tile` tokens."""

    tile: int
    tiles: int


class Kernels(NamedTuple):
    """The three steps of a panel. Pairs, sums and gradient are those of all videos, of which `panel.videos` are its own."""

    distances: Callable[[Pairs, Panel, Tensor, Tensor | None], None]
    """Write the sum of each pair of tiles and, unless None, their coefficients."""
    products: Callable[[Pairs, Panel, Tensor, Tensor], Tensor]
    """Add the panel's contribution to the gradient, and return it; a single panel may return parts to be summed."""
    project: Callable[[Pairs, Panel, Tensor, Tensor], None]
    """Write the sum of the parts, without its component along the features, to the gradient."""


def panels(videos: int, tiles: int, budget: int) -> Iterator[Panel]:
    """Yield the panels of all videos, of at most `budget` blocks, or of one row if that is more."""
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
    """Fill the sums (videos, pairs of tiles) and, unless None, the gradient, panel by panel of type `dtype`."""
    if gradient is None:
        kernels.distances(pairs, Panel(slice(0, len(sums)), 0, pairs.tiles), sums, None)
        return
    budget = scratch_bytes() // (pairs.tile**2 * dtype.itemsize)
    todo = list(panels(len(sums), pairs.tiles, budget))
    blocks = max((p.videos.stop - p.videos.start) * p.blocks(pairs.tiles) for p in todo)
    coefficients = gradient.new_empty((blocks, pairs.tile, pairs.tile), dtype=dtype)
    for panel in todo:
        kernels.distances(pairs, panel, sums, coefficients)
        parts = kernels.products(pairs, panel, coefficients, gradient)
        if panel.end == pairs.tiles:
            kernels.project(pairs, panel, parts, gradient)


def room_for_parts(gradient: Tensor, panel: Panel, tiles: int, programs: int, side_by_side: int) -> Tensor:
    """Return the tensor that `products` writes: the gradient itself, (1, all videos, ...), or parts to be summed.

    Where the `programs` of a launch are fewer than a GPU runs `side_by_side`, several programs
    share the sum of a tile, each of which writes its own part, (splits, videos of the panel, ...).
    That requires a single panel.
    """
    splits = min(side_by_side // programs, MAX_SPLITS, tiles) if panel == panel._replace(first=0, end=tiles) else 1
    return gradient.new_empty((splits, *gradient[panel.videos].shape)) if splits > 1 else gradient[None]


def videos_of(parts: Tensor, panel: Panel) -> slice:
    """Return the panel's videos among those of the tensor from `room_for_parts`."""
    return panel.videos if len(parts) == 1 else slice(0, parts.shape[1])


def scratch_bytes() -> int:
    """Return the most bytes of coefficients stored at a time: LGF_SCRATCH_MIB mebibytes, or 1 GiB."""
    return gpu.scratch_bytes(1024)


def backward(grad_loss: Tensor, residual: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """Return each video's gradient times the upstream gradient, which is read on the device; rounded once."""
    scale = video_scale(grad_loss, reduction, len(residual)).view(-1, 1, 1, 1)
    return torch.mul(residual, scale, out=torch.empty_like(residual, dtype=dtype))
