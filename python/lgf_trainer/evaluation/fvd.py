"""Fréchet Video Distance with a network that the user provides."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.cache import WindowCache
from ..data.video import Fit, Video, VideoError, to_signed
from ..runtime.errors import TrainerError, explained
from ..runtime.files import content_hash
from ..runtime.progress import progress

#: Arguments that the usual TorchScript I3D takes besides the video; given where a network has them.
ARGUMENTS = {"rescale": False, "resize": False, "return_features": True}


class Gaussian:
    """Mean and covariance of vectors that come a few at a time, in float64, without keeping them.

    Example:
        >>> gaussian = Gaussian()
        >>> gaussian.add(torch.tensor([[0.0], [2.0]]))
        >>> gaussian.add(torch.tensor([[4.0]]))
        >>> gaussian.mean.item(), gaussian.covariance.item()
        (2.0, 4.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._scatter = torch.zeros(())

    def add(self, vectors: Tensor) -> None:
        """Add vectors (n, D). Sums of squares about the mean are merged, which loses nothing to cancellation."""
        vectors = vectors.detach().double().cpu()
        mean, count = vectors.mean(0), len(vectors)
        centred, shift = vectors - mean, mean - self.mean
        total = self.count + count
        self._scatter = self._scatter + centred.T @ centred + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance, (D, D)."""
        return self._scatter / (self.count - 1)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), the squared Fréchet distance of two Gaussians.

    The trace of the root is the sum of the singular values of S_1^(1/2) S_2^(1/2): symmetric eigenproblems and no root of
    a general matrix, so that covariances without full rank, of few videos, do no harm.

    Source: Dowson and Landau 1982; FVD: Unterthiner et al. 2018.
    """
    first, second = one.covariance, other.covariance
    cross = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    distance = (one.mean - other.mean).square().sum() + first.trace() + second.trace() - 2 * cross
    return distance.clamp(min=0).item()


def _root(matrix: Tensor) -> Tensor:
    """Return the positive square root of a symmetric, positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class Clips(NamedTuple):
    """Input of the network: the first `frames` frames at `fps`, each resized to `size` whatever its shape."""

    frames: int
    fps: float
    size: tuple[int, int]  # height, width

    def read(self, path: Path) -> tuple[Tensor, dict[str, float | None]]:
        """Return (3, frames, height, width) in [-1, 1], and the facts of the file."""
        video = Video(path, self.fps)
        if video.frames < self.frames:
            raise VideoError(
                f"{path} has {video.frames} frames at {self.fps:g} per second, and {self.frames} are needed"
            )
        ((_, frames),) = video.windows([0], self.frames, Fit.stretch(video.size, self.size))
        height, width = video.size
        facts = {"frames": video.frames, "height": height, "width": width, "rate": video.own_rate}
        return to_signed(frames).transpose(0, 1), facts


class Network:
    """A TorchScript network (B, 3, T, H, W) in [-1, 1] -> (B, D) features."""

    def __init__(self, path: Path, device: torch.device):
        if not path.is_file():
            raise TrainerError(f"{path}: no such file. Give a TorchScript network")
        way_out = "Make one with torch.jit.script(...).save(path)"
        with (
            explained(f"{path} is no TorchScript network", RuntimeError, ValueError, way_out=way_out),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", FutureWarning)  # of torch: the usual networks are TorchScript
            self._module = torch.jit.load(str(path), map_location=device).eval()
        known = {argument.name for argument in self._module.forward.schema.arguments}
        self._arguments = {name: value for name, value in ARGUMENTS.items() if name in known}
        self._path, self._device = path, device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        try:
            features = self._module(clips.to(self._device), **self._arguments)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]  # the lines above are a traceback
            raise TrainerError(
                f"{self._path} cannot take {tuple(clips.shape)} ({reason}). Give it other --size, --frames or --batch"
            ) from error
        made = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if made[:1] != clips.shape[:1] or len(made) != 2:
            raise TrainerError(f"{self._path} makes {made} of {tuple(clips.shape)}: expected (batch, features)")
        return features.float().cpu()


class Features(NamedTuple):
    """Statistics of the features of a folder's videos, those that were taken and left out, and the facts of their files."""

    gaussian: Gaussian
    taken: list[str]
    skipped: list[str]
    facts: list[dict[str, float | None]]

    def span(self, fact: str) -> list[float]:
        """Return the least and the largest number of a fact, as far as it is known."""
        known = [facts[fact] for facts in self.facts if facts.get(fact) is not None]
        return [min(known), max(known)] if known else []

    def described(self) -> str:
        """Return count, frames, size and rate of the videos as words."""
        spans = {fact: " to ".join(f"{n:g}" for n in dict.fromkeys(self.span(fact))) or "unknown" for fact in FACTS}
        return (
            f"{self.gaussian.count} videos of {spans['frames']} frames, {spans['height']} x {spans['width']} pixels, "
            f"{spans['rate']} frames a second in the file"
        )


#: Of a file: frames at the rate at which it is read, size as displayed, its own rate.
FACTS = ("frames", "height", "width", "rate")


def reduction(distance: float, baseline: float) -> float:
    """Return by how many percent of a baseline's FVD another one is lower, as SAM2VideoX reports it.

    Example:
        >>> [round(reduction(360.57, other), 2) for other in (457.59, 465.00, 660.29, 397.73)]
        [21.2, 22.46, 45.39, 9.34]
    """
    return 100 * (baseline - distance) / baseline


def sampled(videos: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Return `count` of the videos, drawn by the seed and in their order.

    Raises:
        TrainerError: there are fewer.
    """
    if len(videos) < count:
        raise TrainerError(f"--sample {count} asks for more than the {len(videos)} videos there are. Ask for fewer")
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(seed))
    return [videos[k] for k in sorted(order[:count].tolist())]


def features_of(
    videos: Sequence[Path],
    network: Callable[[Tensor], Tensor],
    clips: Clips,
    batch: int,
    cache: WindowCache | None = None,
) -> Features:
    """Run the network over videos, `batch` at a time; those whose features are in the cache are not read again.

    Videos that are damaged or too short are skipped and named.

    Raises:
        TrainerError: features are NaN, or less than two videos are left.
    """
    gaussian, taken, skipped, files, waiting = Gaussian(), [], [], [], []
    for path in progress(videos, unit="video", desc=str(videos[0].parent)):
        key = content_hash(path) if cache is not None else ""
        if cache is not None and key in cache:
            window = cache.read(key)
            gaussian.add(window.tensors["features"][None])
            taken.append(str(path))
            files.append(window.about)
            continue
        try:
            clip, facts = clips.read(path)
        except VideoError as error:
            skipped.append(str(error))
            continue
        waiting.append((path, key, clip, facts))
        taken.append(str(path))
        files.append(facts)
        if len(waiting) == batch:
            _run(waiting, network, gaussian, cache)
    if waiting:
        _run(waiting, network, gaussian, cache)
    if gaussian.count < 2:
        raise TrainerError(f"no two videos of {videos[0].parent} can be used: {skipped[0] if skipped else ''}")
    return Features(gaussian, taken, skipped, files)


def _run(
    waiting: list[tuple[Path, str, Tensor, dict]],
    network: Callable[[Tensor], Tensor],
    gaussian: Gaussian,
    cache: WindowCache | None,
) -> None:
    """Add the features of the clips that wait; the list is empty afterwards."""
    features = network(torch.stack([clip for _, _, clip, _ in waiting]))
    for (path, key, _, facts), vector in zip(waiting, features, strict=True):
        if not vector.isfinite().all():
            raise TrainerError(f"the network's features of {path} are not finite")
        if cache is not None:
            cache.write(key, {"features": vector}, {"video": str(path), **facts})
    gaussian.add(features)
    waiting.clear()


def report(names: Sequence[str], sides: Sequence[Features], distances: Sequence[float], clips: Clips) -> str:
    """Return the distances as text, with what the folders hold, and with warnings where that makes them hard to compare."""
    lines = [f"left out: {line}" for side in sides for line in side.skipped]
    lines += [f"{name}: {side.described()}" for name, side in zip(names, sides, strict=True)]
    for fact, word in (("frames", "length"), ("height", "size"), ("width", "size"), ("rate", "rate")):
        if len({tuple(side.span(fact)) for side in sides}) > 1:
            lines.append(
                f"The folders differ in {word}: what FVD measures may be that, and not how well videos are made"
            )
    counts, width = [side.gaussian.count for side in sides], len(sides[0].gaussian.mean)
    if min(counts) <= width:
        lines.append(
            f"{min(counts)} videos are few for {width} features: this FVD is larger than that of more videos. "
            "Compare it only with others of as many"
        )
    alone = len(distances) == 1
    for name, distance, count in zip(names[1:], distances, counts[1:], strict=True):
        of_first = "" if name == names[1] else f", {reduction(distance, distances[0]):.2f} % lower than {names[1]}"
        lines.append(
            f"FVD {distance:.2f}   ({counts[0]} real and {count} generated videos{'' if alone else f' of {name}'}, "
            f"{clips.frames} frames at {clips.fps:g} fps{of_first})"
        )
    return "\n".join(dict.fromkeys(lines))
