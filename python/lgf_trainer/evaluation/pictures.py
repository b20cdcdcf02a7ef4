"""Pictures of the motion that Local Gram Flow shows: of a video's own pixels, or of a teacher in a cache."""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from lgf_kernels import local_gram_flow

from ..data.cache import WindowCache
from ..data.video import frames_if_there, read_video
from ..runtime.errors import TrainerError
from .controls import CONTROLS, LEAST_FRAMES, Reading, verdict
from .motion import READABLE, TOKEN, certainty, expected_motion, patch_descriptors, strongest_motion

PIXEL_WINDOW = 7
UNREADABLE = (0.82, 0.82, 0.82)
MOVING = 0.5  # tokens: shorter displacements are not drawn as arrows, nor counted as motion
READINGS: dict[str, Callable[[Tensor, int], Tensor]] = {"expected": expected_motion, "strongest": strongest_motion}


class Field(NamedTuple):
    """Displacements (pairs, H, W, 2) as (dy, dx) in tokens, and their certainty (pairs, H, W) from 0 to 1."""

    motion: Tensor
    certainty: Tensor

    @property
    def readable(self) -> Tensor:
        """(pairs, H, W): where the distribution is sure enough of a displacement."""
        return self.certainty >= READABLE


class Motion(NamedTuple):
    """Motion of one clip, as it is drawn."""

    name: str
    fields: dict[str, Field]  # by their titles; arrows show the first
    frames: Tensor | None  # (pairs, 3, 8H, 8W) in [-1, 1]: the earlier frame of each pair, if the video is available
    reach: int  # the largest displacement that the window can show, in tokens
    note: str = ""  # what a control found


def of_video(
    path: Path, reading: str, grid: tuple[int, int], frames: int, controls: Sequence[str] = ()
) -> Iterator[Motion]:
    """Yield the motion of the pixels: the Local Gram Flow of `patch_descriptors`, on `grid` tokens of 8 x 8 pixels.

    Then that of the video as each control changes it.

    Raises:
        VideoError: it cannot be read, or has fewer than 2 frames, with a control 8.
    """
    least = LEAST_FRAMES if controls else 2
    video = read_video(path, (grid[0] * TOKEN, grid[1] * TOKEN), at_least=least, at_most=frames)
    before = _of_pixels(video, reading)
    yield _pixels(path.stem, video, before)
    for name in controls:
        changed, lost = CONTROLS[name](video)
        after = _of_pixels(changed, reading)
        yield _pixels(f"{path.stem}-{name}", changed, after, verdict(name, before, after, lost, PIXEL_WINDOW))


def _of_pixels(video: Tensor, reading: str) -> Reading:
    logits = local_gram_flow(patch_descriptors(video)[None], window=PIXEL_WINDOW)[0]
    return Reading(logits, READINGS[reading](logits, PIXEL_WINDOW))


def _pixels(name: str, video: Tensor, read: Reading, note: str = "") -> Motion:
    field = Field(read.motion, certainty(read.logits, PIXEL_WINDOW))
    return Motion(name, {"pixels": field}, video[:-1], PIXEL_WINDOW // 2, note)


def of_cache(folder: Path, reading: str, count: int) -> Iterator[Motion]:
    """Yield the motion that the teacher of the first `count` windows of a cache saw: both directions together, and each.

    Raises:
        TrainerError: no cache, an empty one, one without a teacher, or a damaged one.
    """
    cache = WindowCache(folder)
    window = cache.settings.get("window")
    for key in cache.filled()[:count]:
        tensors, about = cache.read(key)
        if window is None or not {"teacher_forward", "teacher_backward"} <= tensors.keys():
            raise TrainerError(f"{folder} holds no teacher. Give a video, or a cache that lgf extract made with one")
        forward, backward = (tensors[f"teacher_{direction}"].float() for direction in ("forward", "backward"))
        logits = {"both directions": (forward + backward) / 2, "forward": forward, "backward": backward}
        fields = {
            title: Field(READINGS[reading](values, window), certainty(values, window))
            for title, values in logits.items()
        }
        if (frames := frames_if_there(cache.settings, about)) is not None:
            pairs, height, width = forward.shape[:3]
            first = frames[:: (len(frames) - 1) // pairs][:pairs]
            frames = torch.nn.functional.interpolate(first, size=(height * TOKEN, width * TOKEN), mode="area")
        yield Motion(key, fields, frames, window // 2)


def draw(motion: Motion, pairs: int) -> bytes:
    """Draw a PNG: a row for each of a few pairs of frames, the first field as arrows over the frame, every field in colours."""
    first = next(iter(motion.fields.values()))
    count, height, width = first.certainty.shape
    times = torch.linspace(0, count - 1, min(pairs, count)).round().int().tolist()
    columns = 1 + len(motion.fields)
    heading = [motion.name, *textwrap.wrap(motion.note, width=30 * columns)]
    size = (3.1 * columns, 3.1 * height / width * len(times) + 0.7 + 0.2 * len(heading))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.suptitle("\n".join(heading), fontsize=10)
    for row, t in zip(figure.subplots(len(times), columns, squeeze=False), times, strict=True):
        for axes, (title, field) in zip(row[1:], motion.fields.items(), strict=True):
            colours = flow_colours(field.motion[t], motion.reach)
            colours[~field.readable[t].numpy()] = UNREADABLE
            axes.imshow(colours, extent=_extent(height, width))
            axes.set_title(f"motion read from {title}" if t == times[0] else "", fontsize=10)
        if motion.frames is not None:
            row[0].imshow(faded(motion.frames[t]), extent=_extent(height, width))
        row[0].set(xlim=(0, width * TOKEN), ylim=(height * TOKEN, 0), aspect="equal")
        draw_arrows(row[0], first.motion[t], first.readable[t] & (first.motion[t].norm(dim=-1) > MOVING), TOKEN)
        row[0].set_ylabel(f"from frame {t} to {t + 1}", fontsize=10)
        row[0].set_title("arrows over the first of them" if t == times[0] else "", fontsize=10)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    _draw_wheel(figure, size)
    figure.supxlabel(
        f"arrows: displacement to the next frame, to scale, above {MOVING:g} tokens\n"
        f"colours: its direction as in the wheel, white at 0, full at {motion.reach} tokens\n"
        "grey: no motion can be read",
        fontsize=10,
    )
    return png(figure)


def speed(motion: Motion) -> tuple[float, float, float]:
    """Return the mean length of the first field's displacements in tokens, the share above half a token, and that to be read.

    The first two are of the tokens whose motion can be read, and 0 if there are none.
    """
    field = next(iter(motion.fields.values()))
    lengths = field.motion.norm(dim=-1)[field.readable]
    share = field.readable.float().mean().item()
    return (lengths.mean().item(), (lengths > MOVING).float().mean().item(), share) if len(lengths) else (0.0, 0.0, 0.0)


def _draw_wheel(figure: Figure, size: tuple[float, float]) -> None:
    """Draw the colours of the directions in the corner below the pictures."""
    side = 0.55  # inches
    steps = torch.linspace(-1, 1, 65)
    wheel = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    colours = flow_colours(wheel, 1.0)
    colours[(wheel.norm(dim=-1) > 1).numpy()] = 1
    axes = figure.add_axes((1 - side / size[0] - 0.01, 0.01, side / size[0], side / size[1]))
    axes.set_in_layout(False)
    axes.imshow(colours)
    axes.axis("off")


def _extent(height: int, width: int) -> tuple[int, int, int, int]:
    return 0, width * TOKEN, height * TOKEN, 0


def draw_arrows(axes, motion: Tensor, drawn: Tensor, token: int = 8) -> None:
    """Draw displacements (H, W, 2) as arrows from the centres of the tokens where `drawn`; black with a white rim.

    Args:
        axes: of matplotlib, in pixels.
        motion: (dy, dx) in tokens.
        drawn: (H, W) bool.
        token: pixels along one side of a token.
    """
    y, x = (drawn.nonzero().T + 0.5) * token
    dy, dx = (motion[drawn] * token).T
    width = 0.11 / motion.shape[1]  # of the axes
    arrows = axes.quiver(
        *(values.numpy() for values in (x, y, dx, dy)),
        color="black",
        angles="xy",
        scale_units="xy",
        scale=1,
        width=width,
        headwidth=3.4,
    )
    arrows.set_path_effects([withStroke(linewidth=32 / motion.shape[1], foreground="white")])


def faded(frame: Tensor) -> np.ndarray:
    """Return a frame (3, h, w) in [-1, 1] as an image (h, w, 3), lightened so that arrows stand out."""
    return (0.35 + 0.65 * (frame + 1) / 2).permute(1, 2, 0).numpy()


def flow_colours(motion: Tensor, reach: float) -> np.ndarray:
    """Return displacements (..., 2) as colours (..., 3) in [0, 1]: hue is the direction, white is none, pure is `reach`."""
    dy, dx = motion.unbind(-1)
    hue = (torch.atan2(dy, dx) / (2 * torch.pi)) % 1
    strength = (motion.norm(dim=-1) / reach).clamp(max=1)
    return hsv_to_rgb(torch.stack([hue, strength, torch.ones_like(hue)], -1).numpy())


def png(figure: Figure, transparent: bool = False) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, transparent=transparent)
    return buffer.getvalue()
