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

from ..runtime.errors import TrainerError
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
        missing = [name for name in self.tensors if name not in shapes]
        if missing:
            raise TrainerError(
                f"the windows of {cache} have no {missing[0]}, which this recipe's alignment reads; they have "
                f"{', '.join(sorted(shapes))}. Extract with lgf extract --teachers tracks"
            )

    def __call__(self, projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        tracks, visible = targets["tracks"], targets["tracks_visible"].bool()
        frames, rows, columns = projected.shape[1:4]
        step = (tracks.shape[2] - 1) // (frames - 1)
        tracks, visible = tracks[:, :, ::step], visible[:, :, ::step]
        size = torch.tensor([self.settings["height"] / rows, self.settings["width"] / columns]).to(tracks)
        places = (tracks.float() + 0.5) / size - 0.5
        queries = drawn_queries(places, visible, (rows, columns))
        pairs = (
            (visible.sum(-1) - 1).clamp(min=0).sum()
        )  # a frame and the query's own; 0 where nothing is visible twice
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
    place = places.gather(2, frame[..., None, None].expand(*frame.shape, 1, 2))[:, :, 0]
    edge = torch.tensor(grid, device=places.device) - 1
    return torch.cat([frame.unsqueeze(-1).to(places.dtype), place.clamp(min=torch.zeros_like(edge), max=edge)], dim=-1)
