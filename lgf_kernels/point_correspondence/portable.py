"""Point correspondence by matrix products, some queries against one frame at a time: no cost map of a video.

    z = f^ e^^T / tau,  P = exp(z - lse),  p^ = P r                       kept for backward: p^ and lse
    dz = P * (g . (r - p^))                                               g: the gradient of p^
    df^ += dz e^ / tau  over the frames,  de^ += dz^T f^ / tau  over the queries

With a window P is 0 outside, and the token it is around is kept as well; it counts as a constant.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.numerics import accumulate_dtype, divided_by_norm, normalised_gradient
from ..core.registry import Implementation
from .distance import empty_places, empty_state, token_places, window_mask
from .sampling import add_at_corners, corners_of, sampled

#: Logits at a time: on a CPU what stays in its caches, elsewhere what fills the device.
CHUNK_ELEMENTS = {"cpu": 2**18}
CHUNK_ELEMENTS_ELSEWHERE = 2**22


def forward(features: Tensor, queries: Tensor, temperature: float, window: int | None) -> tuple[Tensor, Tensor]:
    """The places (B, N, T, 2), and the state for backward (`empty_state`)."""
    dtype = accumulate_dtype(features)
    places, state = empty_places(features, queries), empty_state(features, queries, window)
    r = token_places(features)
    f, _ = divided_by_norm(sampled(features, corners_of(queries, features.shape, dtype)))
    for b, t, frame in frames(features):
        e, _ = divided_by_norm(frame)
        for some in chunks(features, queries):
            z = (f[b, some] / temperature) @ e.mT
            if window is not None:
                peak = z.argmax(-1)
                z.masked_fill_(~window_mask(peak, r, window), -torch.inf)
                state[b, some, t, 1] = peak.to(dtype)
            largest = z.amax(-1, keepdim=True)
            total = z.sub_(largest).exp_().sum(-1, keepdim=True)
            places[b, some, t] = (z @ r).div_(total)
            state[b, some, t, :1] = total.log_().add_(largest)
    return places, state


def backward(
    grad_places: Tensor,
    features: Tensor,
    queries: Tensor,
    places: Tensor,
    state: Tensor,
    temperature: float,
    window: int | None,
) -> Tensor:
    """The gradient of the features."""
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    dtype, r = places.dtype, token_places(features)
    corners = corners_of(queries, features.shape, dtype)
    f, f_norm = divided_by_norm(sampled(features, corners))
    df = torch.zeros_like(f)
    for b, t, frame in frames(features):
        e, e_norm = divided_by_norm(frame)
        de = torch.zeros_like(e)
        for some in chunks(features, queries):
            sharp = f[b, some] / temperature
            dz = (sharp @ e.mT).sub_(state[b, some, t, :1]).exp_()
            if window is not None:
                dz.masked_fill_(~window_mask(state[b, some, t, 1].long(), r, window), 0)
            dz.mul_(pull(grad_places[b, some, t], places[b, some, t], r))
            df[b, some].addmm_(dz, e, alpha=1 / temperature)
            de.addmm_(dz.mT, sharp)
        gradient[b, t] = normalised_gradient(de, e, e_norm).view(gradient.shape[2:])
    add_at_corners(gradient, corners, normalised_gradient(df, f, f_norm))
    return gradient


def frames(features: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (b, t, frame (H*W, C), contiguous, in the accumulation type)."""
    for b, video in enumerate(features.unbind(0)):
        for t, frame in enumerate(video.unbind(0)):
            yield b, t, frame.flatten(0, 1).to(accumulate_dtype(features)).contiguous()


def chunks(features: Tensor, queries: Tensor) -> Iterator[slice]:
    """Queries whose logits with one frame are few enough."""
    elements = CHUNK_ELEMENTS.get(features.device.type, CHUNK_ELEMENTS_ELSEWHERE)
    step = max(1, elements // features[0, 0, ..., 0].numel())
    return (slice(n, n + step) for n in range(0, queries.shape[1], step))


def pull(g: Tensor, places: Tensor, r: Tensor) -> Tensor:
    """g . (r_j - p^), (n, H*W). The places are subtracted first: the products of g with each cancel."""
    (y, x), (place_y, place_x), (g_y, g_x) = r.unbind(-1), places.unsqueeze(1).unbind(-1), g.unsqueeze(1).unbind(-1)
    return ((y - place_y) * g_y).addcmul_(x - place_x, g_x)


point_correspondence = Implementation(forward, backward)
