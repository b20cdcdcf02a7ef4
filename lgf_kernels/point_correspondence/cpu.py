"""Launchers of the C++ module for CPU tensors. It searches and is searched; sampling the queries is torch's part."""

import torch
from torch import Tensor

from ..core.native import described, module, threads
from ..core.numerics import divided_by_norm, last_dimension_contiguous, normalised_gradient
from ..core.registry import Implementation
from .distance import empty_places, empty_state, with_exact_ties
from .sampling import add_at_corners, corners_of, sampled


def forward(features: Tensor, queries: Tensor, temperature: float, window: int | None) -> tuple[Tensor, Tensor]:
    """The places (B, N, T, 2), and the state for backward (`empty_state`)."""
    features = last_dimension_contiguous(features)
    places = empty_places(features, queries)
    state = empty_state(features, queries, window)
    f, _ = divided_by_norm(sampled(features, corners_of(queries, features.shape, places.dtype)))
    sharp = f.div_(temperature).contiguous()
    features = with_exact_ties(features, window)
    module(features).point_correspondence(
        described(features),
        tuple(features.shape[:4]),
        sharp.data_ptr(),
        queries.shape[1],
        places.data_ptr(),
        state.data_ptr(),
        window=window or 0,
        **threads(),
    )
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
    features = last_dimension_contiguous(features)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    corners = corners_of(queries, features.shape, places.dtype)
    f, norm = divided_by_norm(sampled(features, corners))
    sharp, df = (f / temperature).contiguous(), torch.empty_like(f, memory_format=torch.contiguous_format)
    places, state, grad_places = (x.contiguous() for x in (places, state, grad_places.to(places.dtype)))
    features = with_exact_ties(features, window)
    module(features).point_correspondence_backward(
        described(features),
        tuple(features.shape[:4]),
        sharp.data_ptr(),
        queries.shape[1],
        places.data_ptr(),
        state.data_ptr(),
        grad_places.data_ptr(),
        gradient.data_ptr(),
        df.data_ptr(),
        window=window or 0,
        **threads(),
    )
    add_at_corners(gradient, corners, normalised_gradient(df.div_(temperature), f, norm))
    return gradient


point_correspondence = Implementation(forward, backward)
