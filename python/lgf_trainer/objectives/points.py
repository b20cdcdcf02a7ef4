"""Point correspondence along tracks: Track4Gen, as SAM2VideoX compares itself with (Track4Gen*).

SAM2VideoX says: the same projector, no refiner, tracks from RAFT. The projected features of a point in one frame are to
find it in all others. The weight is not said; Track4Gen's 8 is in units that it does not say. Ours is 0.5, as of the other
losses, with distances in tokens and Huber's delta of one token, so that the term is of the order of 1 at the start.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lgf_kernels import PointCorrespondenceLoss

from ..data.cache import must_hold
from .base import Objective


@dataclass(frozen=True)
class Options:
    """Of point correspondence; as in `lgf_kernels.point_correspondence_loss`."""

    temperature: float = 0.05
    """Of the softmax over the tokens of a frame."""
    distance: Literal["huber", "l1"] = "huber"
    """Between the place that is found and the track."""
    delta: float = 1.0
    """Tokens at which huber goes over from a parabola to a line."""
    window: int | None = None
    """Tokens around the best match that the softmax runs over; None: the whole frame."""


class Points(Objective):
    """Point correspondence along the tracks of the cache, from a frame of each that is drawn at every step."""

    name = "points"
    Options = Options

    def __init__(self, alignment, settings, options):
        super().__init__(alignment, settings, options)
        self.criterion = PointCorrespondenceLoss(
            options.temperature, options.distance, options.delta, options.window, "sum", backend=alignment.backend
        )

    def read_tensors(self):
        return ("tracks", "tracks_visible"), (1.0, 1.0)

    def frames(self, shapes):
        return self.settings["grid"][0]

    def check(self, shapes, grid, cache):
        for name in self.tensors:
            must_hold(shapes, name, cache, "this recipe's alignment", "Extract with lgf extract --teachers tracks")

    def __call__(self, projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        tracks, visible = targets["tracks"], targets["tracks_visible"].bool()
        frames, rows, columns = projected.shape[1:4]
        step = (tracks.shape[2] - 1) // (frames - 1)
        tracks, visible = tracks[:, :, ::step], visible[:, :, ::step]
        sides = (rows / self.settings["height"], columns / self.settings["width"])
        scaled = [(pixel + 0.5) * side - 0.5 for pixel, side in zip(tracks.float().unbind(-1), sides, strict=True)]
        places = torch.stack(scaled, dim=-1)
        queries = drawn_queries(places, visible, (rows, columns))
        pairs = (visible.sum(-1) - 1).clamp(min=0).sum()  # the query's own frame teaches nothing
        return self.criterion(projected, queries, places, visible) / pairs.clamp(min=1)


def drawn_queries(places: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (B, N, 3): a visible frame of each track, drawn evenly, and the track's row and column there.

    Drawn from torch's generator of the CPU, which the trainer seeds at every step; the host does not wait for the device. A
    track within the outer half of a border token is asked for at that token's centre.
    """
    counts = visible.sum(-1)
    chosen = (torch.rand(counts.shape).to(places.device, non_blocking=True) * counts).floor().clamp(max=counts - 1)
    number = visible.cumsum(-1) - 1
    frame = (visible & (number == chosen.unsqueeze(-1))).int().argmax(-1)
    y, x = places.gather(2, frame[..., None, None].expand(*frame.shape, 1, 2))[:, :, 0].unbind(-1)
    return torch.stack([frame.to(y.dtype), y.clamp(0, grid[0] - 1), x.clamp(0, grid[1] - 1)], dim=-1)
