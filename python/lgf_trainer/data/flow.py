"""Optical flow between the frames of a window: estimated by RAFT, or read from a file beside the video.

Flow is (2, H, W), u to the right and v downwards, in pixels of its own grid: what is seen at x in one frame is at
x + flow(x) in the other. Points are (N, 2), y and x, in pixels whose centres are whole numbers.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from ..runtime.errors import TrainerError, in_short
from ..runtime.hub import frozen
from .report import Skipped
from .sources import Clip
from .video import Fit

#: (frames, the frames after them), both (N, 3, H, W) in [-1, 1] -> flow (N, 2, H, W).
FlowEstimator = Callable[[Tensor, Tensor], Tensor]


class Source(NamedTuple):
    """Where the frames of a window come from: a video, the number of its first frame, and how pictures are cut."""

    clip: Clip
    start: int
    fit: Fit


@dataclass(frozen=True)
class FlowOptions:
    """Where flow comes from."""

    network: Literal["large", "small"] = "large"
    """Of torchvision's RAFT."""
    weights: str = "C_T_SKHT_V2"
    """Of RAFT: a name of torchvision's (downloaded once from download.pytorch.org), or a .pth or .safetensors file."""
    updates: int = 12
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
        build = getattr(optical_flow, f"raft_{options.network}")
        known = [weights.name for weights in getattr(optical_flow, f"Raft_{options.network.title()}_Weights")]
        model = build()
        try:
            model.load_state_dict(_weights(options, known, optical_flow))
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise TrainerError(
                f"weights {options.weights} of RAFT cannot be loaded: {in_short(error)}. Give a file of the {options.network} "
                f"network's weights, or one of {', '.join(known)} and a network to download them"
            ) from error
        self._model, self._device, self._updates = frozen(model, device), device, options.updates

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return flow (N, 2, H, W) from frames (N, 3, H, W) in [-1, 1] to others, one pair at a time.

        Raises:
            TrainerError: they are smaller than RAFT's 128 x 128, or do not divide by 8.
        """
        height, width = first.shape[-2:]
        if min(height, width) < 128 or height % 8 or width % 8:
            raise TrainerError(f"RAFT needs frames of 128 x 128 at least and multiples of 8, got {height} x {width}")
        flows = []
        for pair in zip(first, second, strict=True):
            one, other = (frame[None].to(self._device, torch.float32) for frame in pair)
            flows.append(self._model(one, other, num_flow_updates=self._updates)[-1].cpu())
        return torch.cat(flows)


def _weights(options: FlowOptions, known: list[str], optical_flow) -> dict[str, Tensor]:
    if options.weights in known:
        weights = getattr(optical_flow, f"Raft_{options.network.title()}_Weights")[options.weights]
        return weights.get_state_dict(progress=True, check_hash=True)
    path = Path(options.weights)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


class NeighbourFlow(NamedTuple):
    """Flow between neighbouring frames of a window, (frames - 1, 2, H, W): to the next one, and back from it."""

    forward: Tensor
    backward: Tensor | None  # None: the file does not hold it


def estimate(video: Tensor, flow: FlowEstimator) -> NeighbourFlow:
    """Return the flow between neighbouring frames of a video (frames, 3, H, W)."""
    return NeighbourFlow(flow(video[:-1], video[1:]), flow(video[1:], video[:-1]))


def read_flow(source: Source, frames: int, suffix: str) -> NeighbourFlow:
    """Return the flow of a window from the file beside its video, cut and scaled as the window's pictures are.

    Raises:
        Skipped: the file cannot be read, or holds no flow, or not enough of it.
    """
    forward, backward = _read(source.clip, suffix)
    needed = source.start + frames - 1
    if len(forward) < needed:
        raise Skipped("no flow", f"its {suffix} has {len(forward)} pairs of frames, and {needed} are needed")
    window = slice(source.start, needed)
    cut = [None if part is None else _fitted(part[window], source.fit) for part in (forward, backward)]
    return NeighbourFlow(*cut)


def sidecar_hash(clip: Clip, suffix: str) -> str:
    """Return the SHA-256 of a file beside a video.

    Raises:
        Skipped: there is none.
    """
    opener = clip.sidecar(suffix)
    if opener is None:
        raise Skipped(
            f"no {suffix}", f"there is none beside it: a file named as the video, with {suffix} for its ending"
        )
    with opener() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(clip: Clip, suffix: str) -> tuple[Tensor, Tensor | None]:
    """Return (forward, backward or None) of all pairs of a video's neighbouring frames."""
    opener = clip.sidecar(suffix)
    try:
        with opener() as file:
            content = file.read()
        if suffix.endswith(".npy"):
            array = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False)).float()
            both = tuple(array) if array.ndim == 5 and len(array) == 2 else (array, None)
        else:
            tensors = load(content)
            both = tensors["forward"].float(), tensors.get("backward")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise Skipped("no flow", f"its {suffix} cannot be read: {in_short(error)}") from error
    except KeyError as error:
        raise Skipped("no flow", f"its {suffix} has no tensor 'forward'") from error
    forward, backward = both[0], None if both[1] is None else both[1].float()
    if forward.ndim != 4 or forward.shape[1] != 2 or (backward is not None and backward.shape != forward.shape):
        raise Skipped(
            "no flow", f"its {suffix} has the shape {tuple(forward.shape)}: flow is (pairs of frames, 2, height, width)"
        )
    return forward, backward


def _fitted(flow: Tensor, fit: Fit) -> Tensor:
    """Flow over the whole picture as flow over a window's part of it, in the window's pixels."""
    return torch.stack([fit.cut(resized(one[None], fit.resized)[0].permute(1, 2, 0)).permute(2, 0, 1) for one in flow])


def resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Return flow (N, 2, H, W) on another grid, in that grid's pixels: bilinear."""
    height, width = flow.shape[-2:]
    if (height, width) == tuple(size):
        return flow
    scale = torch.tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
    return interpolate(flow, size, mode="bilinear", align_corners=False) * scale


def sampled(flow: Tensor, points: Tensor) -> Tensor:
    """Return flow (2, H, W) at points (N, 2) of y and x, bilinear, as (N, 2) of v and u; outside, the border's."""
    height, width = flow.shape[-2:]
    places = (2 * points / torch.tensor([height - 1, width - 1]) - 1).flip(-1)
    values = grid_sample(flow[None], places[None, None], padding_mode="border", align_corners=True)
    return values[0, :, 0].T.flip(-1)


def chained(first: Tensor, second: Tensor) -> Tensor:
    """Return the flow (2, H, W) over two pairs of frames: first(x) + second(x + first(x))."""
    size = first.shape[-2:]
    points = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in size))
    step = sampled(first, points)
    return (step + sampled(second, points + step)).flip(-1).T.unflatten(1, size)
