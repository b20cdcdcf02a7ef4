"""Teacher features from a tracker that knows the exact motion of all it has seen.

Every surface point carries one embedding through the clip: random Fourier features of its part and its place on that
part. Two points of one part have cosine similarity exp(-distance^2 / (2 scale^2)); points of different parts are
nearly orthogonal. What limits a real tracker limits this one too: it knows a point only from memory. The forward
tracker does not know a point in the frame where it first appears (it was hidden, or outside, one frame earlier), the
backward tracker does not know it in the frame before it disappears. An unknown point gets noise for an embedding.
"""

import math

import torch
from torch import Tensor

from .clips import TOKEN, Clip, grid_points

SAMPLES = 4  # embeddings are averaged over SAMPLES x SAMPLES points of a token: it sees an area, as a feature map does


def oracle_features(clip: Clip, channels: int = 96, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return forward and backward teacher features, each (T, H, W, channels), of a clip.

    Args:
        clip: from `make_clip`.
        channels: size of an embedding.
        scale: distance on a surface, in tokens, over which an embedding changes.
        seed: draws the embedding, which is one and the same function for all clips of a seed.
    """
    frames, height, width = len(clip.video), *clip.motion.shape[1:3]
    size = (height * TOKEN, width * TOKEN)
    rng = torch.Generator().manual_seed(seed)
    frequency = torch.randn(2, channels, generator=rng) / (scale * TOKEN)
    phase = 2 * math.pi * torch.rand(len(clip.scene.radius), channels, generator=rng)
    points = grid_points(height * SAMPLES, width * SAMPLES) * (TOKEN / SAMPLES)

    def embed(t: int, remembered: int) -> Tensor:
        part, uv = clip.scene.surface(t, points)
        known = torch.cos(uv @ frequency + phase[part])
        unknown = torch.randn(known.shape, generator=rng) * math.sqrt(0.5)  # as long as `known`
        if 0 <= remembered < frames:
            known = torch.where(clip.scene.visible(remembered, part, uv, size)[:, None], known, unknown)
        return known.reshape(height, SAMPLES, width, SAMPLES, channels).mean((1, 3))

    forward = torch.stack([embed(t, remembered=t - 1) for t in range(frames)])
    backward = torch.stack([embed(t, remembered=t + 1) for t in range(frames)])
    return forward, backward
