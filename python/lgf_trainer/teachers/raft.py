"""Optical flow as a teacher: what MoAlign's motion subspace is trained on.

MoAlign says RAFT, consecutive frames, 23 flows of 128 x 192. Which frames stand for a token, at which size RAFT runs and in
which unit are our reading: from the first frame of one tubelet to that of the next, at the size of the target (128 is
RAFT's minimum), in its pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.flow import FlowOptions, Raft, Source, chained, read_flow, resized
from .base import Teacher


@dataclass(frozen=True)
class Options(FlowOptions):
    """Of optical flow."""

    size: tuple[int, int] = (128, 192)
    """Height and width at which flow is estimated and stored, in whose pixels it is."""
    pairs: Literal["first", "boundary"] = "first"
    """Frames that stand for the tubelets of two frames 1, 2 | 3, 4 | ...: the first of each (1 -> 3), or those at the
    boundary (2 -> 3), which leaves out half of the motion."""


class Flow(Teacher):
    """Flow between the tubelets of VideoMAE, (tubelets - 1, 2, height, width) in float16. In the cache: `flow`."""

    name = "raft"
    Options = Options

    def __init__(self, options, device):
        self.options = options
        self.raft = None if options.files else Raft(options, device)

    def __call__(self, video, subject, student):
        first, second = tubelet_pairs(len(video), self.options.pairs)
        if self.raft is None:
            flow = self._of_file(student.source, len(video), first, second)
        else:
            frames = interpolate(video, self.options.size, mode="bilinear", antialias=True)
            flow = self.raft(frames[first], frames[second])
        return {"flow": flow.half()}

    def _of_file(self, source: Source, frames: int, first: list[int], second: list[int]) -> Tensor:
        forward = resized(read_flow(source, frames, self.options.files).forward, self.options.size)
        one_step = second[0] - first[0] == 1
        return torch.stack([forward[k] if one_step else chained(forward[k], forward[k + 1]) for k in first])


def tubelet_pairs(frames: int, pairs: str) -> tuple[list[int], list[int]]:
    """Return the numbers of the frames between which flow runs, for tubelets of two frames without the very first frame."""
    if pairs == "first":
        starts = list(range(1, frames, 2))
        return starts[:-1], starts[1:]
    ends = list(range(2, frames - 1, 2))
    return ends, [end + 1 for end in ends]
