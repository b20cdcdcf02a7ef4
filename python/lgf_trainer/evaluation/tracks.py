"""Pictures of the tracks in a cache: what point correspondence is taught, before a run is spent on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..data.cache import WindowCache, must_hold
from ..data.video import frames_if_there
from .pictures import faded, png

TAIL = 8  # frames of a track that are drawn behind its point


class WindowTracks(NamedTuple):
    """What is drawn of one window."""

    name: str
    places: Tensor  # (points, frames, 2): y and x in pixels
    visible: Tensor  # (points, frames) of bool
    frames: Tensor | None  # (frames, 3, H, W) in [-1, 1], if the video is to be had
    size: tuple[int, int]


def of_cache(folder: Path, count: int) -> Iterator[WindowTracks]:
    """Yield the tracks of the first `count` windows of a cache.

    Raises:
        TrainerError: no cache, an empty one, one without tracks, or a damaged one.
    """
    cache = WindowCache(folder)
    for key in cache.filled()[:count]:
        tensors, about = cache.read(key)
        must_hold(tensors, "tracks", folder, "lgf eval tracks", "Extract with lgf extract --teachers tracks")
        size, frames = (cache.settings["height"], cache.settings["width"]), frames_if_there(cache.settings, about)
        yield WindowTracks(key, tensors["tracks"], tensors["tracks_visible"].bool(), frames, size)


def draw(tracks: WindowTracks, columns: int, points: int) -> bytes:
    """Return a PNG: frames from the first to the last, with the points that are visible there and where they came from.

    Args:
        tracks: of a window.
        columns: frames to draw.
        points: tracks to draw, taken evenly from all.
    """
    chosen = torch.linspace(0, len(tracks.places) - 1, min(points, len(tracks.places))).round().long()
    places, visible = tracks.places[chosen], tracks.visible[chosen]
    colours = place_colours(first_places(places, visible), tracks.size)
    times = torch.linspace(0, places.shape[1] - 1, min(columns, places.shape[1])).round().int().tolist()
    height, width = tracks.size
    figure = Figure((3.4 * len(times), 3.4 * height / width + 0.8), layout="constrained", facecolor="white")
    for axes, t in zip(figure.subplots(1, len(times), squeeze=False)[0], times, strict=True):
        if tracks.frames is not None:
            axes.imshow(faded(tracks.frames[t]))
        tail = slice(max(0, t - TAIL), t + 1)
        shown = visible[:, t].numpy()  # as a tensor, one of one track would be an index into arrays
        axes.add_collection(
            LineCollection(_lines(places[:, tail], visible[:, tail])[shown], colors=colours[shown], lw=1)
        )
        x, y = places[shown, t].flip(-1).T.numpy()
        axes.scatter(x, y, s=9, c=colours[shown], edgecolors="black", linewidths=0.3)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
        axes.set_title(f"frame {t}: {shown.mean():.0%} in sight", fontsize=11)
    figure.supxlabel(
        f"points: tracks that are in sight, coloured by where they begin; lines: their last {TAIL} frames", fontsize=10
    )
    return png(figure)


def summary(tracks: WindowTracks) -> str:
    """Return how long tracks last and how far they go, in words."""
    steps = (tracks.places[:, 1:] - tracks.places[:, :-1]).norm(dim=-1)
    both = tracks.visible[:, 1:] & tracks.visible[:, :-1]
    mean = steps[both].mean().item() if both.any() else 0.0
    alone = (tracks.visible.sum(-1) < 2).float().mean()
    return (
        f"{len(tracks.places)} tracks, in sight in {tracks.visible.float().mean():.0%} of the frames, "
        f"{mean:.2f} pixels a frame, {alone:.0%} teach nothing (in sight in one frame only)"
    )


def first_places(places: Tensor, visible: Tensor) -> Tensor:
    """Return where each track is first in sight, (points, 2)."""
    first = visible.int().argmax(-1)
    return places[torch.arange(len(places)), first]


def place_colours(places: Tensor, size: tuple[int, int]):
    """Return colours (points, 3): the hue by the column, darker towards the bottom."""
    y, x = (places / torch.tensor(size)).clamp(0, 1).unbind(-1)
    return hsv_to_rgb(torch.stack([0.85 * x, torch.full_like(x, 0.9), 1 - 0.45 * y], -1).numpy())


def _lines(places: Tensor, visible: Tensor):
    """Return lines (points, frames, 2) of x and y, with gaps where a track is out of sight."""
    return places.masked_fill(~visible.unsqueeze(-1), torch.nan).flip(-1).numpy()
