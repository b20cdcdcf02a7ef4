"""Tracks of points through a window, chained from optical flow: what Track4Gen's loss is taught by.

RAFT runs between neighbouring frames, in both directions. A point is followed from frame to frame, and lost for good
where it leaves the picture or where the flow back does not lead to where it came from (DINO-Tracker's way; its threshold
of 1.5 pixels comes with a check against the direct flow, ours of 1 without). Only neighbours are compared, so that small
errors add up over a long track.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.flow import NeighbourFlow, read_flow, sampled
from ..runtime.recipe import Count, Positive
from .raft import FlowOptions, FlowTeacher, check_size


@dataclass(frozen=True)
class Options(FlowOptions):
    """Of tracks."""

    updates: Count = 24
    """Refinements of RAFT; DINO-Tracker's."""
    points: Count = 1024
    """Tracks in a window."""
    threshold: Positive = 1.0
    """Pixels by which the way there and back may miss its beginning."""


class Tracks(FlowTeacher):
    """Tracks from flow. In the cache: `tracks` (points, frames, 2), y and x in pixels; `tracks_visible` (points, frames)."""

    name = "tracks"
    Options = Options

    @classmethod
    def check_size(cls, options, size):
        if not options.files:
            check_size(*size)

    def __call__(self, video, subject, student):
        if self.raft is None:
            flow = read_flow(student.source, len(video), self.options.files, backward=True)
        else:
            flow = NeighbourFlow(self.raft(video[:-1], video[1:]), self.raft(video[1:], video[:-1]))
        tracks, visible = tracks_from_flow(flow, self.options.points, self.options.threshold)
        return {"tracks": tracks, "tracks_visible": visible.to(torch.uint8)}


def tracks_from_flow(flow: NeighbourFlow, points: int, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return tracks (points, frames, 2), y and x in pixels, and where they are visible (points, frames) of bool.

    Three quarters begin on a jittered grid in the first frame, the others in places that no track covers after a quarter, a
    half and three quarters of the window; what is then left begins anywhere in the first frame.

    Args:
        flow: between neighbouring frames.
        points: number of tracks.
        threshold: pixels by which the way there and back may miss its beginning.
    """
    frames, (height, width) = len(flow.forward) + 1, flow.forward.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([height, width], dtype=torch.float32)
    rows = max(1, round((0.75 * points * height / width) ** 0.5))
    cells = torch.tensor([rows, max(1, int(0.75 * points) // rows)])
    parts = [follow(flow, _in_cells(torch.arange(int(cells.prod())), cells, size, generator)[:points], 0, threshold)]
    starts = sorted({frames * quarter // 4 for quarter in (1, 2, 3)} - {0})
    for number, start in enumerate(starts):
        left = points - sum(len(part) for part, _ in parts)
        places, visible = (torch.cat(each)[:, start] for each in zip(*parts, strict=True))
        covered = _cell_of(places[visible], cells, size)
        free = torch.ones(int(cells.prod()), dtype=torch.bool).index_fill(0, covered, False).nonzero()[:, 0]
        chosen = free[torch.randperm(len(free), generator=generator)[: left // (len(starts) - number)]]
        parts.append(follow(flow, _in_cells(chosen, cells, size, generator), start, threshold))
    left = points - sum(len(part) for part, _ in parts)
    anywhere = torch.rand(left, 2, generator=generator) * (size - 1)
    parts.append(follow(flow, anywhere, 0, threshold))
    tracks, visible = (torch.cat(each) for each in zip(*parts, strict=True))
    return tracks, visible


def follow(flow: NeighbourFlow, points: Tensor, start: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Return (places, visible) of points (N, 2) of frame `start` in all frames, followed to the end and to the beginning."""
    frames = len(flow.forward) + 1
    places, visible = {start: points}, {start: torch.ones(len(points), dtype=torch.bool)}
    for t in range(start, frames - 1):
        places[t + 1], visible[t + 1] = _step(flow.forward[t], flow.backward[t], places[t], visible[t], threshold)
    for t in range(start, 0, -1):
        places[t - 1], visible[t - 1] = _step(
            flow.backward[t - 1], flow.forward[t - 1], places[t], visible[t], threshold
        )
    return tuple(torch.stack([by_frame[t] for t in range(frames)], dim=1) for by_frame in (places, visible))


def _step(there: Tensor, back: Tensor, points: Tensor, visible: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    edge = torch.tensor(there.shape[-2:]) - 1
    moved = points + sampled(there, points)
    missed = (moved + sampled(back, moved) - points).norm(dim=-1)
    inside = ((moved >= 0) & (moved <= edge)).all(-1)
    return moved, visible & inside & (missed < threshold)


def _in_cells(numbers: Tensor, cells: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random point in each of the cells that a picture is divided into, by their numbers."""
    corners = torch.stack([numbers // cells[1], numbers % cells[1]], dim=-1)
    points = (corners + torch.rand(len(numbers), 2, generator=generator)) / cells * size - 0.5
    return points.clamp(min=torch.zeros(2), max=size - 1)


def _cell_of(points: Tensor, cells: Tensor, size: Tensor) -> Tensor:
    row, column = ((points + 0.5) / size * cells).long().clamp(min=torch.zeros(2).long(), max=cells - 1).unbind(-1)
    return row * cells[1] + column
