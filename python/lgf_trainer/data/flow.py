"""Optical flow: of a window from the file beside its video, on other grids, at points, and over several frames.

Flow is (2, H, W), u to the right and v downwards, in pixels of its own grid: what is seen at x in one frame is at
x + flow(x) in the other. Points are (N, 2), y and x, in pixels whose centres are whole numbers.
"""

import hashlib
import io
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from ..runtime.errors import in_short
from .fit import Fit
from .report import Skipped
from .sources import Clip


class Source(NamedTuple):
    """Where the frames of a window come from: a video, the number of its first frame, and how pictures are cut."""

    clip: Clip
    start: int
    fit: Fit


class NeighbourFlow(NamedTuple):
    """Flow between neighbouring frames of a window, (frames - 1, 2, H, W): to the next one, and back from it."""

    forward: Tensor
    backward: Tensor | None  # None: it was not asked for


def read_flow(source: Source, frames: int, suffix: str, *, backward: bool) -> NeighbourFlow:
    """Return the flow of a window from the file beside its video, cut and scaled as the window's pictures are.

    Args:
        source: of the window.
        frames: of the window.
        suffix: ending of the file.
        backward: whether the flow back is needed too.

    Raises:
        Skipped: the file cannot be read, or holds no flow, or not enough of it.
    """
    forward, back = _read(source.clip, suffix)
    if backward and back is None:
        raise Skipped(
            "no flow",
            f"its {suffix} has no flow back, which tracks are checked with: store both, (2, pairs of frames, 2, height, "
            "width), or the tensors 'forward' and 'backward'",
        )
    needed = source.start + frames - 1
    if len(forward) < needed:
        raise Skipped("no flow", f"its {suffix} has {len(forward)} pairs of frames, and {needed} are needed")
    window = slice(source.start, needed)
    return NeighbourFlow(_fitted(forward[window], source.fit), _fitted(back[window], source.fit) if backward else None)


def sidecar_hash(clip: Clip, suffix: str) -> str:
    """Return the SHA-256 of a file beside a video; skip a video without one."""
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
