"""Optical flow as a teacher: what MoAlign's motion subspace is trained on.

MoAlign says RAFT, consecutive frames, 23 flows of 128 x 192. Which frames stand for a token, at which size RAFT runs and in
which unit are our reading: from the first frame of one tubelet to that of the next, at the size of the target (128 is
RAFT's minimum), in its pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.flow import Source, chained, read_flow, resized
from ..runtime.errors import TrainerError, explained
from ..runtime.hub import frozen
from ..runtime.recipe import Count
from .base import Teacher


@dataclass(frozen=True)
class FlowOptions:
    """Where flow comes from."""

    network: Literal["large", "small"] = "large"
    """Of torchvision's RAFT."""
    weights: str = "C_T_SKHT_V2"
    """Of RAFT: a name of torchvision's (downloaded once from download.pytorch.org), or a .pth or .safetensors file."""
    updates: Count = 12
    """Refinements of RAFT; torchvision's default."""
    files: str = ""
    """Read flow instead from files beside the videos, with this ending: .flow.npy or .flow.safetensors for dog.flow.npy
    beside dog.mp4 (docs/trainer.md says what they hold)."""


class Raft:
    """RAFT of torchvision.

    Args:
        options: which network, weights and refinements.
        device: where to compute, in float32.

    Raises:
        TrainerError: torchvision is not installed, or there are no such weights.
    """

    def __init__(self, options: FlowOptions, device: torch.device):
        try:
            from torchvision.models import optical_flow
        except ImportError as error:
            raise TrainerError(
                'RAFT is torchvision\'s, which is not installed: pip install "lgf-kernels[flow]". '
                "Or bring flow of your own: --teacher-options raft.files=.flow.npy"
            ) from error
        model = getattr(optical_flow, f"raft_{options.network}")()
        named = getattr(optical_flow, f"Raft_{options.network.title()}_Weights").__members__
        way_out = (
            f"Give a file of the {options.network} network's weights, or one of {', '.join(named)} and a network to "
            "download them, or flow of your own: --teacher-options NAME.files=.flow.npy"
        )
        # torch.load raises different types for what is no file of weights.
        with explained(f"weights {options.weights} of RAFT cannot be loaded", Exception, way_out=way_out):
            model.load_state_dict(_weights(options.weights, named))
        self._model, self._device, self._updates = frozen(model, device), device, options.updates

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return flow (N, 2, H, W) from frames (N, 3, H, W) in [-1, 1] to others, one pair at a time."""
        check_size(*first.shape[-2:])
        flows = []
        for pair in zip(first, second, strict=True):
            one, other = (frame[None].to(self._device, torch.float32) for frame in pair)
            flows.append(self._model(one, other, num_flow_updates=self._updates)[-1].cpu())
        return torch.cat(flows)


def check_size(height: int, width: int) -> None:
    """Refuse frames that RAFT cannot take."""
    if min(height, width) < 128 or height % 8 or width % 8:
        raise TrainerError(
            f"RAFT needs frames of 128 x 128 at least and multiples of 8, got {height} x {width}. Give another size "
            "(--height and --width for tracks, raft.size for raft), or flow of your own: --teacher-options "
            "NAME.files=.flow.npy"
        )


def _weights(name: str, named: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return torchvision's weights of a name, or those of a file."""
    if name in named:
        return named[name].get_state_dict(progress=True, check_hash=True)
    if Path(name).suffix == ".safetensors":
        return load_file(name)
    return torch.load(name, map_location="cpu", weights_only=True)


class FlowTeacher(Teacher):
    """Base of teachers that look at flow: RAFT's, or that of files beside the videos."""

    def __init__(self, options, device):
        self.options = options
        self.raft = None if options.files else Raft(options, device)

    @classmethod
    def sidecars(cls, options):
        return (options.files,) if options.files else ()


@dataclass(frozen=True)
class Options(FlowOptions):
    """Of optical flow."""

    size: tuple[Count, Count] = (128, 192)
    """Height and width at which flow is estimated and stored, in whose pixels it is."""
    pairs: Literal["first", "boundary"] = "first"
    """Frames that stand for the tubelets of two frames 1, 2 | 3, 4 | ...: the first of each (1 -> 3), or those at the
    boundary (2 -> 3), which leaves out half of the motion."""


class Flow(FlowTeacher):
    """Flow between the tubelets of VideoMAE, (tubelets - 1, 2, height, width) in float16. In the cache: `flow`."""

    name = "raft"
    Options = Options

    @classmethod
    def check_size(cls, options, size):
        if not options.files:
            check_size(*options.size)

    def __call__(self, video, subject, student):
        first, second = tubelet_pairs(len(video), self.options.pairs)
        if self.raft is None:
            flow = self._of_file(student.source, len(video), first, second)
        else:
            frames = interpolate(video, self.options.size, mode="bilinear", antialias=True)
            flow = self.raft(frames[first], frames[second])
        return {"flow": flow.half()}

    def _of_file(self, source: Source, frames: int, first: list[int], second: list[int]) -> Tensor:
        forward = resized(read_flow(source, frames, self.options.files, backward=False).forward, self.options.size)
        one_step = second[0] - first[0] == 1
        return torch.stack([forward[k] if one_step else chained(forward[k], forward[k + 1]) for k in first])


def tubelet_pairs(frames: int, pairs: str) -> tuple[list[int], list[int]]:
    """Return the numbers of the frames between which flow runs, for tubelets of two frames without the very first frame."""
    if pairs == "first":
        starts = list(range(1, frames, 2))
        return starts[:-1], starts[1:]
    ends = list(range(2, frames - 1, 2))
    return ends, [end + 1 for end in ends]
