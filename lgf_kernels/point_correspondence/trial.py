"""Cases with which a backend of point correspondence proves itself (`core/verify.py`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.registry import Call, implementation
from ..core.verify import Case, pattern

#: (B, T, H, W) and N: ragged tiles; and a frame of 30 x 45 tokens.
SMALL, LARGE = ((2, 3, 9, 19), 70), ((1, 8, 30, 45), 512)
#: Channels where the call does not tell them, in traced code.
CHANNELS = 64
#: Softer than the default: the places then depend on many tokens.
TEMPERATURE = 0.2
VARIANTS = ({}, {"window": 2})


def trial(call: Call, large: bool) -> Case:
    """Return a forward and backward with the call's type and window, of points on tokens and between them."""
    grid, N = LARGE if large else SMALL
    features = pattern((*grid, call.shape[-1] if call.shape else CHANNELS), 0, call)
    sizes = torch.tensor([grid[1], grid[2] - 1, grid[3] - 1], dtype=torch.float64, device=call.device)
    queries = (pattern((grid[0], N, 3), 1, call).double() + 0.5) * sizes
    queries[..., 0] = queries[..., 0].floor().clamp(max=grid[1] - 1)
    queries[:, ::2] = queries[:, ::2].floor()
    window = call.fact("window")

    def run(backend: str) -> Sequence[Tensor]:
        forward, backward, _ = implementation(call.operator, backend, call.device_type)
        places, state = forward(features, queries, TEMPERATURE, window)
        upstream = places - places.mean((1, 2), keepdim=True)
        return places, backward(upstream, features, queries, places, state, TEMPERATURE, window)

    return run
