"""Two measures of an encoder's features, from Align4Gen: inter-to-intra cluster ratio (equations 5 to 7), frequency gap (8 to 12).

How well an encoder tells the things in a video apart, and how much fine detail its features have. The paper leaves open how
many clusters there are, whether features are normalised, what the spread of a cluster is, and how channels and frames count;
the choices here are in the docstrings.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..runtime.errors import TrainerError

ROUNDS, RESTARTS = 100, 4
#: Added to magnitudes before their logarithm, of features whose root mean square is 1.
EPSILON = 1e-6
#: Frequencies beyond this share of the largest along an axis are high.
HIGH = 0.75


class Clusters(NamedTuple):
    """Clusters of points: label of each point (N,), centres (k, C) in float64, and the sum of squared distances to them."""

    labels: Tensor
    centres: Tensor
    inertia: float


def cluster_ratio(features: Tensor, clusters: int, *, unit: bool = True, patches: int = 20_000, seed: int = 0) -> float:
    """Return the inter-to-intra cluster ratio of a video's features: least distance of two centres over the largest spread.

    The spread of a cluster is the root mean square distance to its centre.

    Args:
        features: (..., C); every vector is a patch.
        clusters: k, at least 2.
        unit: normalise every patch to length 1, so that encoders of different scales compare.
        patches: take so many of them at most, drawn by the seed.
        seed: of the draw and of the first centres.

    Returns:
        The ratio; inf where all patches of each cluster are the same.

    Raises:
        TrainerError: there are fewer different patches than clusters.
    """
    if clusters < 2:
        raise TrainerError(f"a distance between clusters takes at least 2 clusters, got {clusters}")
    points = features.flatten(0, -2).float()
    points = normalize(points, dim=-1) if unit else points
    points = points - points.mean(0)  # distances lose fewer digits near 0
    rng = torch.Generator().manual_seed(seed)
    if len(points) > patches:
        points = points[torch.randperm(len(points), generator=rng)[:patches]]
    found = best_clusters(points, clusters, rng)
    within = (points.double() - found.centres[found.labels]).square().sum(1)
    spread = _sums(within[:, None], found.labels, clusters)[:, 0] / found.labels.bincount(minlength=clusters)
    apart = torch.nn.functional.pdist(found.centres).min().item()
    widest = spread.max().sqrt().item()
    return apart / widest if widest > 0 else math.inf


def best_clusters(points: Tensor, count: int, rng: torch.Generator) -> Clusters:
    """Return the clusters (N, C) of k-means with the least inertia of several restarts, each from k-means++."""
    return min((_clusters(points, count, rng) for _ in range(RESTARTS)), key=lambda found: found.inertia)


def _clusters(points: Tensor, count: int, rng: torch.Generator) -> Clusters:
    """Return clusters by Lloyd's rounds, until no label changes."""
    centres, labels = first_centres(points, count, rng).double(), None
    for _ in range(ROUNDS):
        near = centres.float()
        before, labels = labels, (near.square().sum(1) - 2 * points @ near.T).argmin(1)  # less each point's own square
        for empty in (labels.bincount(minlength=count) == 0).nonzero().flatten().tolist():
            farthest = _squares(points, centres[labels]).argmax()
            centres[empty], labels[farthest] = points[farthest], empty
        if before is not None and torch.equal(before, labels):
            break
        centres = _sums(points, labels, count) / labels.bincount(minlength=count)[:, None]
    return Clusters(labels, centres, _squares(points, centres[labels]).sum().item())


def first_centres(points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return k-means++'s first centres (k, C): each drawn by its squared distance to the nearest one before.

    Raises:
        TrainerError: there are fewer different points.
    """
    chosen = [torch.randint(len(points), (), generator=rng)]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        if not nearest.any():
            raise TrainerError(
                f"{count} clusters are asked for, and there are {len(chosen)} different patches. Ask for fewer --clusters"
            )
        chosen.append(torch.multinomial(nearest, 1, generator=rng)[0])
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    return points[torch.stack(chosen)]


def _sums(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the sums (count, C) of values (N, C) by label, in float64."""
    return torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, labels, values.double())


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    return (points.double() - centres).square().sum(1)


def frequency_gap(features: Tensor) -> float:
    """Return how far the log-magnitude of high spatial frequencies lies from that of frequency 0; natural features: below 0.

    The mean over frames and channels, of each frame scaled to a root mean square of 1. High are the frequencies beyond 0.75
    of the largest along an axis, corners included; where rows and columns differ in number, along each axis of its own.

    Args:
        features: (frames, rows, columns, C).
    """
    high = high_frequencies(*features.shape[1:3])
    gaps = []
    for frame in features.double():
        frame = frame / frame.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        magnitude = (torch.fft.fft2(frame, dim=(0, 1)).abs() + EPSILON).log().mean(-1)
        gaps.append(magnitude[high].mean() - magnitude[0, 0])
    return torch.stack(gaps).mean().item()


def high_frequencies(rows: int, columns: int) -> Tensor:
    """Return which bins of an FFT (rows, columns) are of high frequency."""
    v, u = (
        torch.fft.fftfreq(side, dtype=torch.float64) * 2 for side in (rows, columns)
    )  # 1 is the largest along an axis
    return (v[:, None].square() + u.square()).sqrt() > HIGH
