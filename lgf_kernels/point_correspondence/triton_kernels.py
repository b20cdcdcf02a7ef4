"""Point correspondence, and its gradient from stored coefficients of some frames at a time.

    z[n, j] = < f_n, e_j > r_n r_j / temperature                              r: reciprocal norms; f_n between the tokens
    p^_n    = sum_j P[n, j] r_j,  P = exp(z - lse)
    g[n, j] = P[n, j] <grad p^_n, r_j - p^_n> r_n r_j / temperature
    de_j    = sum_n g[n, j] f_n,  df_n = sum_{t, j} g[n, j] e_j               each less its part along e_j, f_n

    lgf_points_sample         points: f_n, their norms, the tokens around and their shares
    lgf_points_search         points and a frame: P is made and summed tile after tile, nothing stored but p^ and lse
    lgf_points_coefficients   points and tokens of a frame: g, in the type of the features
    lgf_points_products       tokens of a frame: sum over the points; and points: sum over the tokens of frames
    lgf_points_project        tokens, points: what lies along them is taken off
    lgf_points_scatter        a token: what the points around it have for it is added in their order

Products of N points with T H W tokens of C channels are 2 N T H W C operations each: one forward, three backward. The
coefficients take N H W numbers a frame; as many frames at a time are stored, multiplied and overwritten by the next as fit
in the budget, 64 MiB or what LGF_SCRATCH_MIB says, which is enough to fill a GPU whatever the shape. Making them again in
both products, flash style, stores nothing, but costs a fourth product and leaves no registers for more than 256 channels.

Why g holds the norms of both: rounding to bfloat16 then errs independently in each pair, and normalised copies of the features
need not be rounded at all.

With a window the maximum must be known first, and all logits are made twice; those outside the window are left out after.
"""

import torch
from torch import Tensor

from ..core import triton_launch as launch
from ..core.gpu import scratch_bytes
from ..core.numerics import last_dimension_contiguous
from ..core.registry import Implementation
from ..core.triton_norms import reciprocal_norms
from .distance import empty_places, empty_state, with_exact_ties
from .triton_gradient import add_products, coefficients, project
from .triton_points import Points, sample, scatter
from .triton_search import search

#: Mebibytes of coefficients and of the gradient of tokens at a time, unless LGF_SCRATCH_MIB says otherwise.
SCRATCH_MIB = 64
#: Parts of a sum over frames, at most: each is as large as the points' features.
MOST_SPLITS = 8


def forward(features: Tensor, queries: Tensor, temperature: float, window: int | None) -> tuple[Tensor, Tensor]:
    """The places (B, N, T, 2), and the state for backward (`empty_state`)."""
    features = last_dimension_contiguous(features)
    places, state = empty_places(features, queries), empty_state(features, queries, window)
    if queries.shape[1] > 0:
        with launch.on_device_of(features):
            points, *_ = prepared(features, queries, places, state, None, temperature, window)
            search(
                points.features, points.norms, points.queries, points.query_norms, places, state, points.sharpness,
                points.window,
            )  # fmt: skip
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
    if queries.shape[1] == 0:
        return torch.zeros_like(features, memory_format=torch.contiguous_format)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    places, state, grad_places = (x.contiguous() for x in (places, state, grad_places.to(places.dtype)))
    with launch.on_device_of(features):
        points, corners, shares = prepared(features, queries, places, state, grad_places, temperature, window)
        df = torch.empty_like(points.sampled)
        for video in range(len(features)):
            video_gradient(points, video, gradient, df)
        scatter(df, corners, shares, gradient)
    return gradient


def prepared(
    features: Tensor,
    queries: Tensor,
    places: Tensor,
    state: Tensor,
    grad_places: Tensor | None,
    temperature: float,
    window: int | None,
) -> tuple[Points, Tensor, Tensor]:
    """Sample the points, and return what the kernels take of a call, and the tokens and shares of the points' corners."""
    sampled, query_norms, corners, shares = sample(features, queries, places.dtype)
    features = with_exact_ties(features, window)
    (norms,) = reciprocal_norms([features], "cosine")
    operand = launch.operand_type(features.dtype, places.dtype)
    sharpness = launch.exact(1 / temperature)
    points = Points(
        features, norms, sampled, sampled.to(operand), query_norms, places, state, grad_places, sharpness, window or 0
    )
    return points, corners, shares


def video_gradient(points: Points, video: int, gradient: Tensor, df: Tensor) -> None:
    """Write the gradient of a video's tokens, and of its points, some frames at a time."""
    _, T, H, W, C = points.features.shape
    N, tile, dtype = points.queries.shape[1], points.tile, points.coefficient_type
    block = (-(-N // tile) * tile, -(-H * W // tile) * tile)
    frame_bytes = block[0] * block[1] * dtype.itemsize + H * W * C * df.element_size()
    step = min(T, max(1, scratch_bytes(SCRATCH_MIB) // frame_bytes))
    blocks = df.new_empty((step, *block), dtype=dtype)
    de = df.new_empty((step, H * W, C))
    parts = df.new_zeros((splits_of(N, C, step, tile, df.device), N, C))
    for first in range(0, T, step):
        frames = slice(0, min(step, T - first))
        coefficients(points, video, first, blocks[frames])
        add_products(points, video, first, blocks[frames], de[frames], tokens=True)
        add_products(points, video, first, blocks[frames], parts, tokens=False)
        project(de[frames], points.features, points.norms, gradient, video, first, 1)
    tokens = points.sampled[:, None, None]
    project(parts, tokens, points.query_norms, df, video, 0, len(parts))


def splits_of(points: int, channels: int, frames: int, tile: int, device: torch.device) -> int:
    """How many programs share the sum of a tile of points over the frames: as many as fill the GPU."""
    programs = -(-points // tile) * -(-channels // 256)
    return max(1, min(launch.multiprocessors(device) // programs, MOST_SPLITS, frames))


point_correspondence = Implementation(forward, backward)
