"""Softmax over the tokens of a frame and its mean place, tile after tile of tokens (`triton_kernels`)."""

import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.triton_blocks import dot, exact, load_channels, outer_strides, token_offsets
from . import triton_configs as configs


@triton.jit
def products(points, queries, frame, stride, n, j, count, frame_tokens, W, C: tl.constexpr, BLOCK_C: tl.constexpr,
              OPERAND: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """< f_n, e_j > of raw features; 0 past the last of either. `points`: the f_n, where a block holds all their channels."""
    z = tl.zeros((n.shape[0], j.shape[0]), ACC)
    tokens = token_offsets(j, W, stride, INDEX)
    if BLOCK_C >= C:
        e = load_channels(frame, tokens, j < frame_tokens, 0, C, BLOCK_C)
        z = dot(points, tl.trans(e), z, OPERAND)
    else:
        for c0 in range(0, C, BLOCK_C):
            f = load_channels(queries, n.to(tl.int64) * C, n < count, c0, C, BLOCK_C)
            e = load_channels(frame, tokens, j < frame_tokens, c0, C, BLOCK_C)
            z = dot(f, tl.trans(e), z, OPERAND)
    return z


@triton.jit
def logits(z, scale, norms, j, frame_tokens):
    """z / (||f|| ||e|| temperature); -inf past the last token."""
    z = z * scale[:, None] * tl.load(norms + j, mask=j < frame_tokens, other=0.0)[None, :]
    return tl.where((j < frame_tokens)[None, :], z, float("-inf"))


@triton.jit
def in_window(j, W, peak, WINDOW: tl.constexpr):
    """Whether token j is at most WINDOW rows and columns from the peak."""
    rows = tl.abs((j // W)[None, :] - (peak // W)[:, None])
    columns = tl.abs((j % W)[None, :] - (peak % W)[:, None])
    return (rows <= WINDOW) & (columns <= WINDOW)


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_points_search(
    features,
    stride,
    norms,
    queries,
    query_norms,
    places,
    state,
    sharpness,
    points,
    frames,
    frame_tokens,
    W,
    C: tl.constexpr,
    WINDOW: tl.constexpr,
    OPERAND: tl.constexpr,
    INDEX: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    ACC: tl.constexpr = places.dtype.element_ty
    stride = outer_strides(stride, C)
    t = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    frame = features + (b * stride[0] + t * stride[1])
    norms += (b * frames + t) * frame_tokens
    queries += b * points * C
    scale = tl.load(query_norms + b * points + n, mask=n < points, other=0.0) * exact(sharpness, ACC)
    if BLOCK_C >= C:
        f = load_channels(queries, n.to(tl.int64) * C, n < points, 0, C, BLOCK_C)
    else:
        f = scale  # in blocks of channels they are read for every tile

    largest = tl.full((TILE_Q,), float("-inf"), ACC)
    total = tl.zeros((TILE_Q,), ACC)
    peak = tl.zeros((TILE_Q,), tl.int32)
    if WINDOW > 0:
        for p0 in range(0, frame_tokens, TILE_P):
            j = p0 + tl.arange(0, TILE_P)
            z = products(f, queries, frame, stride, n, j, points, frame_tokens, W, C, BLOCK_C, OPERAND, ACC, INDEX)
            z = logits(z, scale, norms, j, frame_tokens)
            top = tl.max(z, 1)
            first = tl.min(tl.where(z == top[:, None], j[None, :], frame_tokens), 1)
            peak = tl.where(top > largest, first, peak)
            largest = tl.maximum(largest, top)
            # NaN anywhere in the frame, in the window or not.
            total += tl.sum(tl.where((j < frame_tokens)[None, :], z - z, 0.0), 1)
    mean_y = tl.zeros((TILE_Q,), ACC)
    mean_x = tl.zeros((TILE_Q,), ACC)
    for p0 in range(0, frame_tokens, TILE_P):
        j = p0 + tl.arange(0, TILE_P)
        z = products(f, queries, frame, stride, n, j, points, frame_tokens, W, C, BLOCK_C, OPERAND, ACC, INDEX)
        z = logits(z, scale, norms, j, frame_tokens)
        if WINDOW > 0:
            z = tl.where(in_window(j, W, peak, WINDOW), z, float("-inf"))
        new = tl.maximum(largest, tl.max(z, 1))
        old = tl.exp(largest - new)
        p = tl.exp(z - new[:, None])
        total = total * old + tl.sum(p, 1)
        mean_y = mean_y * old + tl.sum(p * (j // W).to(ACC)[None, :], 1)
        mean_x = mean_x * old + tl.sum(p * (j % W).to(ACC)[None, :], 1)
        largest = new
    row = (b * points + n) * frames + t
    tl.store(places + row * 2, mean_y / total, mask=n < points)
    tl.store(places + row * 2 + 1, mean_x / total, mask=n < points)
    if WINDOW > 0:
        tl.store(state + row * 2, largest + tl.log(total), mask=n < points)
        tl.store(state + row * 2 + 1, peak.to(ACC), mask=n < points)
    else:
        tl.store(state + row, largest + tl.log(total), mask=n < points)


def search(
    features: Tensor,
    norms: Tensor,
    queries: Tensor,
    query_norms: Tensor,
    places: Tensor,
    state: Tensor,
    sharpness,
    window: int,
) -> None:
    """Fill the places and the state from features and f_q (B, N, C) in the type of the products, and reciprocal norms."""
    B, T, H, W, C = features.shape
    N = queries.shape[1]
    launch.run_configured(
        lgf_points_search,
        lambda config: (triton.cdiv(N, config["TILE_Q"]), T, B),
        configs.search(C, queries.dtype, launch.architecture(features.device)),
        features,
        launch.outer_strides(features),
        norms,
        queries,
        query_norms,
        places,
        state,
        sharpness,
        N,
        T,
        H * W,
        W,
        C=C,
        WINDOW=window,
        OPERAND=launch.triton_type(queries.dtype),
        INDEX=launch.index_type(features),
    )
