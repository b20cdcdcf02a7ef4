"""Features that encoders are measured by, of caches or of videos, and their table and picture."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.cache import WindowCache
from ..data.video import read_video
from ..runtime.errors import TrainerError
from ..runtime.text import format_table
from ..teachers.base import Student, Teacher, options_of
from .encoders import cluster_ratio, frequency_gap, high_frequencies
from .pictures import png

PREFIX = "features_"
PIXELS = 16  # of a token's side in videos that are read for an encoder


@dataclass
class Measures:
    """What was measured of one encoder, video by video: ratios by the number of clusters, and frequency gaps."""

    ratios: dict[int, list[float]] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    shape: tuple[int, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return means over the videos, as they are written to a file: None for inf, which JSON does not have."""
        means = {str(clusters): mean(values) for clusters, values in self.ratios.items()}
        ratios = {clusters: value if math.isfinite(value) else None for clusters, value in means.items()}
        return {"videos": len(self.gaps), "shape": self.shape, "iicr": ratios, "frequency_gap": mean(self.gaps)}


def of_cache(folder: Path, names: Sequence[str], count: int) -> Iterator[dict[str, Tensor]]:
    """Yield the features in the first `count` windows of a cache, by name: those asked for, or all.

    Raises:
        TrainerError: no cache, an empty one, or one without such features.
    """
    cache = WindowCache(folder)
    for key in cache.filled()[:count]:
        tensors = cache.read(key).tensors
        found = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX) and t.ndim == 4}
        if not found or (lacking := set(names) - found.keys()):
            wanted = f"no features of {', '.join(sorted(lacking))}" if found else "no features"
            there = f" There are: {', '.join(sorted(found))}." if found else ""
            raise TrainerError(f"{folder} holds {wanted}.{there} Extract with --teachers, such as dino or sam2-image")
        yield {name: found[name] for name in names or found}


def of_videos(
    paths: Iterable[Path], teachers: dict[str, Teacher], grid: tuple[int, int], frames: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the features that teachers make of videos, on a grid of tokens, of the first `frames` at 8 a second."""
    for path in paths:
        video = read_video(path, (grid[0] * PIXELS, grid[1] * PIXELS), at_most=frames)
        student, found = Student(range(len(video)), grid), {}
        for teacher in teachers.values():
            found |= teacher(video, None, student)
        yield {n.removeprefix(PREFIX): t for n, t in found.items() if n.startswith(PREFIX) and t.ndim == 4}


def load_teachers(names: Sequence[str], words: Sequence[str], device: torch.device) -> dict[str, Teacher]:
    """Return teachers by name, with weights.

    Raises:
        TrainerError: there is no such teacher, or it needs a subject, which videos here do not have.
    """
    for name in names:
        if Teacher.find(name).needs_subject:
            raise TrainerError(
                f"--teachers {name} needs a subject. Extract with it, and give the cache instead of videos"
            )
    options = options_of({name: {} for name in names}, words)
    return {name: Teacher.find(name)(own, device) for name, own in options.items()}


def measured(
    videos: Iterable[dict[str, Tensor]], clusters: Sequence[int], *, unit: bool, patches: int, seed: int
) -> dict[str, Measures]:
    """Return what is measured of each encoder over videos.

    Raises:
        TrainerError: a video has no features, too few different ones, or some that cannot be measured.
    """
    found: dict[str, Measures] = {}
    for features in videos:
        for name, tensor in features.items():
            if reason := unsupported_reason(tensor):
                raise TrainerError(f"the features of {name} {reason}")
            own = found.setdefault(name, Measures())
            own.shape = tuple(tensor.shape)
            own.gaps.append(frequency_gap(tensor))
            for count in clusters:
                ratio = cluster_ratio(tensor, count, unit=unit, patches=patches, seed=seed)
                own.ratios.setdefault(count, []).append(ratio)
    if not found:
        raise TrainerError("there are no features of frames to measure. Name teachers that make some, such as dino")
    return found


def unsupported_reason(features: Tensor) -> str | None:
    """Return why features (frames, rows, columns, C) cannot be measured, or None."""
    if not features.isfinite().all():
        return (
            "hold NaN or inf, which no cluster and no frequency is made of. Extract them again; float16 ends at 65504"
        )
    rows, columns = features.shape[1:3]
    if not high_frequencies(rows, columns).any():
        return f"have {rows} x {columns} tokens a frame, and so no high frequency. Give them a finer grid"
    return None


def table(found: dict[str, Measures]) -> str:
    """Return the means of all encoders, side by side."""
    counts = list(next(iter(found.values())).ratios)
    rows = [["encoder", "features", "videos", *(f"IICR, k = {count}" for count in counts), "frequency gap"]]
    for name, own in found.items():
        shape = " x ".join(map(str, own.shape))
        ratios = [f"{mean(own.ratios[count]):.3f}" for count in counts]
        rows.append([name, shape, str(len(own.gaps)), *ratios, f"{mean(own.gaps):+.3f}"])
    text = format_table(rows)
    if any(ratio == float("inf") for own in found.values() for ratios in own.ratios.values() for ratio in ratios):
        text += "\ninf: the patches of each cluster are all the same, so that there is no spread to divide by"
    return text


def draw(found: dict[str, Measures]) -> bytes:
    """Draw a PNG: the ratio against the number of clusters, and the frequency gap of every video, a colour for each encoder."""
    figure = Figure((9.6, 3.6), layout="constrained", facecolor="white")
    ratio, gap = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (name, own) in enumerate(found.items()):
        colour = f"C{place}"
        ratio.plot(list(own.ratios), [mean(values) for values in own.ratios.values()], "o-", color=colour, label=name)
        gap.plot([place] * len(own.gaps), own.gaps, "o", color=colour, alpha=0.4, markersize=4)
        gap.plot(place, mean(own.gaps), "_", color=colour, markersize=28, markeredgewidth=2)
    ratio.set(xscale="log", xlabel="clusters k", title="inter-to-intra cluster ratio (higher: things stand apart)")
    ratio.set_xticks(list(own.ratios), list(map(str, own.ratios)))
    ratio.minorticks_off()
    ratio.legend(frameon=False)
    gap.set(title="frequency gap (higher: finer detail)")
    gap.set_xticks(range(len(found)), list(found))
    gap.margins(x=0.3)
    for axes in (ratio, gap):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
    return png(figure)
