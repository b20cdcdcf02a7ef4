"""What the kernels take of a call; features at the points, between tokens, and the way back of their gradient
(`triton_kernels`)."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.triton_blocks import clamped_norm, load_channels, outer_strides
from . import triton_configs as configs

#: Points of a program and channels that it reads at a time.
ROWS, BLOCK_C = 16, 64


class Points(NamedTuple):
    """What the kernels take of a call."""

    features: Tensor
    norms: Tensor
    """Reciprocal, of the tokens."""
    sampled: Tensor
    """f_n, in the accumulation type."""
    queries: Tensor
    """The same in the type of the products."""
    query_norms: Tensor
    places: Tensor
    state: Tensor
    grad_places: Tensor | None
    sharpness: tuple[float, float]
    window: int

    @property
    def coefficient_type(self) -> torch.dtype:
        return launch.operand_type(self.features.dtype, self.places.dtype, by_gradient=True)

    @property
    def tile(self) -> int:
        return configs.TILES[self.coefficient_type.itemsize]


@triton.jit
def _corner(features, stride, b, t, y, x, share, mask, c0, C: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr):
    """The share of a corner in f_q."""
    token = b * stride[0] + t * stride[1] + y * stride[2] + x * stride[3]
    return share[:, None] * load_channels(features, token, mask, c0, C, BLOCK_C).to(ACC)


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_points_sample(
    features,
    stride,
    queries,
    sampled,
    norms,
    corners,
    shares,
    T,
    H,
    W,
    points,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """f_q, 1 / max(||f_q||, EPS), and of each corner its token, counted through the batch, and its share."""
    ACC: tl.constexpr = sampled.dtype.element_ty
    stride = outer_strides(stride, C)
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = n < points
    row = b * points + n
    t = tl.load(queries + row * 3, mask=mask, other=0.0)
    y = tl.load(queries + row * 3 + 1, mask=mask, other=0.0)
    x = tl.load(queries + row * 3 + 2, mask=mask, other=0.0)
    inside = (t >= 0) & (t < T) & (y >= 0) & (y <= H - 1) & (x >= 0) & (x <= W - 1)
    t, y, x = tl.where(inside, t, 0.0), tl.where(inside, y, 0.0), tl.where(inside, x, 0.0)
    frame, top, left = t.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
    inside &= frame.to(t.dtype) == t
    down, right = y - top.to(y.dtype), x - left.to(x.dtype)
    bottom, far = top + (down > 0).to(tl.int64), left + (right > 0).to(tl.int64)
    # A query outside the video has shares of NaN.
    up = tl.where(inside, 1 - down, float("nan"))
    down = tl.where(inside, down, float("nan"))
    a, c = (up * (1 - right)).to(ACC), (up * right).to(ACC)
    d, e = (down * (1 - right)).to(ACC), (down * right).to(ACC)

    total = tl.zeros((ROWS,), ACC)
    for c0 in range(0, C, BLOCK_C):
        f = _corner(features, stride, b, frame, top, left, a, mask, c0, C, ACC, BLOCK_C)
        f += _corner(features, stride, b, frame, top, far, c, mask, c0, C, ACC, BLOCK_C)
        f += _corner(features, stride, b, frame, bottom, left, d, mask, c0, C, ACC, BLOCK_C)
        f += _corner(features, stride, b, frame, bottom, far, e, mask, c0, C, ACC, BLOCK_C)
        total += tl.sum(f * f, 1)
        channels = c0 + tl.arange(0, BLOCK_C)
        tl.store(sampled + row[:, None] * C + channels[None, :], f, mask=mask[:, None] & (channels < C)[None, :])
    tl.store(norms + row, 1.0 / clamped_norm(total) + (total - total), mask=mask)

    first = (b * T + frame) * H
    tl.store(corners + row * 4, (first + top) * W + left, mask=mask)
    tl.store(corners + row * 4 + 1, (first + top) * W + far, mask=mask)
    tl.store(corners + row * 4 + 2, (first + bottom) * W + left, mask=mask)
    tl.store(corners + row * 4 + 3, (first + bottom) * W + far, mask=mask)
    tl.store(shares + row * 4, a, mask=mask)
    tl.store(shares + row * 4 + 1, c, mask=mask)
    tl.store(shares + row * 4 + 2, d, mask=mask)
    tl.store(shares + row * 4 + 3, e, mask=mask)


def sample(features: Tensor, queries: Tensor, accumulate: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return f_q (B, N, C), their reciprocal norms (B, N), and the tokens and shares of their corners (B, N, 4)."""
    B, T, H, W, C = features.shape
    N = queries.shape[1]
    queries = queries.to(torch.promote_types(queries.dtype, accumulate)).contiguous()
    sampled = features.new_empty((B, N, C), dtype=accumulate)
    norms = sampled.new_empty((B, N))
    corners, shares = sampled.new_empty((B, N, 4), dtype=torch.int64), sampled.new_empty((B, N, 4))
    launch.run(
        lgf_points_sample,
        (triton.cdiv(N, ROWS), B),
        features,
        launch.outer_strides(features),
        queries,
        sampled,
        norms,
        corners,
        shares,
        T,
        H,
        W,
        N,
        C=C,
        ROWS=ROWS,
        BLOCK_C=BLOCK_C,
        num_warps=4,
        enable_fp_fusion=False,  # threads that share a point would disagree about its last bit, and write it all at once
    )
    return sampled, norms, corners, shares


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_points_scatter(upstream, corners, order, shares, gradient, points, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """gradient[token] += sum of share * upstream over the corners there, sorted: the first of them sums them all in order."""
    ACC: tl.constexpr = upstream.dtype.element_ty
    first = tl.program_id(0).to(tl.int64)
    token = tl.load(corners + first)
    if first > 0:
        if tl.load(corners + first - 1) == token:
            return
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), ACC)
    corner = first
    here = token
    while here == token:
        pair = tl.load(order + corner)
        df = tl.load(upstream + pair // 4 * C + c, mask=c < C, other=0.0)
        total += tl.load(shares + pair) * df
        corner += 1
        here = tl.load(corners + corner, mask=corner < points, other=-1)
    places = gradient + token * C + c
    total += tl.load(places, mask=c < C, other=0.0).to(ACC)
    tl.store(places, total.to(gradient.dtype.element_ty), mask=c < C)


def scatter(upstream: Tensor, corners: Tensor, shares: Tensor, gradient: Tensor) -> None:
    """Add the gradient of f_q (B, N, C) to that of the features, contiguous (B, T, H, W, C)."""
    C = upstream.shape[-1]
    corners, order = corners.flatten().sort(stable=True)
    channels = min(256, max(32, triton.next_power_of_2(C)))
    launch.run(
        lgf_points_scatter,
        (corners.numel(), triton.cdiv(C, channels)),
        upstream,
        corners,
        order,
        shares,
        gradient,
        corners.numel(),
        C=C,
        BLOCK_C=channels,
        num_warps=1,  # of few channels several warps would read and add to the same
    )
