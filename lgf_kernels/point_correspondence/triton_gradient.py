"""Coefficients of points and tokens, their products with features, and the projection of these (`triton_kernels`)."""

import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.triton_blocks import SHORT, dot, exact, load_channels, outer_strides, token_offsets
from . import triton_configs as configs
from .triton_points import Points
from .triton_search import in_window, logits, products


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_points_coefficients(
    features,
    stride,
    norms,
    queries,
    query_norms,
    places,
    state,
    grad_places,
    coefficients,
    sharpness,
    video,
    first,
    points,
    frames,
    frame_tokens,
    W,
    C: tl.constexpr,
    WINDOW: tl.constexpr,
    OPERAND: tl.constexpr,
    INDEX: tl.constexpr,
    TILE: tl.constexpr,
    TILE_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """g[n, j] = dz[n, j] / (||f_n|| ||e_j|| temperature) of a tile of a frame; 0 past the last of either."""
    ACC: tl.constexpr = places.dtype.element_ty
    stride = outer_strides(stride, C)
    b = tl.cast(video, tl.int64)
    t = first + tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    j = tl.program_id(1) * TILE_P + tl.arange(0, TILE_P)
    frame = features + (b * stride[0] + t * stride[1])
    norms += (b * frames + t) * frame_tokens
    queries += b * points * C
    scale = tl.load(query_norms + b * points + n, mask=n < points, other=0.0) * exact(sharpness, ACC)
    if BLOCK_C >= C:
        f = load_channels(queries, n.to(tl.int64) * C, n < points, 0, C, BLOCK_C)
    else:
        f = scale
    z = products(f, queries, frame, stride, n, j, points, frame_tokens, W, C, BLOCK_C, OPERAND, ACC, INDEX)
    z = logits(z, scale, norms, j, frame_tokens)

    row = (b * points + n) * frames + t
    place_y = tl.load(places + row * 2, mask=n < points, other=0.0)
    place_x = tl.load(places + row * 2 + 1, mask=n < points, other=0.0)
    g_y = tl.load(grad_places + row * 2, mask=n < points, other=0.0)
    g_x = tl.load(grad_places + row * 2 + 1, mask=n < points, other=0.0)
    STATE: tl.constexpr = 2 if WINDOW > 0 else 1
    p = tl.exp(z - tl.load(state + row * STATE, mask=n < points, other=0.0)[:, None])
    y, x = (j // W).to(ACC)[None, :] - place_y[:, None], (j % W).to(ACC)[None, :] - place_x[:, None]
    g = p * (y * g_y[:, None] + x * g_x[:, None])
    if WINDOW > 0:
        peak = tl.load(state + row * STATE + 1, mask=n < points, other=0.0).to(tl.int32)
        g = tl.where(in_window(j, W, peak, WINDOW), g, 0.0)
    g = g * scale[:, None] * tl.load(norms + j, mask=j < frame_tokens, other=0.0)[None, :]
    height, width = tl.cdiv(points, TILE) * TILE, tl.cdiv(frame_tokens, TILE) * TILE
    block = coefficients + tl.program_id(2).to(tl.int64) * height * width
    tl.store(block + n.to(tl.int64)[:, None] * width + j[None, :], g.to(coefficients.dtype.element_ty))


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_points_products(
    coefficients,
    features,
    stride,
    queries,
    out,
    video,
    first,
    end,
    points,
    frame_tokens,
    W,
    splits,
    C: tl.constexpr,
    TOKENS: tl.constexpr,
    OPERAND: tl.constexpr,
    INDEX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """With TOKENS out[frame, j] = sum_n g[n, j] f_n, else out[split, n] += sum_j g[n, j] e_j over the frames of a split."""
    ACC: tl.constexpr = out.dtype.element_ty
    stride = outer_strides(stride, C)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    c0 = tl.program_id(1) * BLOCK_C
    part = tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    height, width = tl.cdiv(points, TILE) * TILE, tl.cdiv(frame_tokens, TILE) * TILE
    b = tl.cast(video, tl.int64)
    acc = tl.zeros((TILE, BLOCK_C), ACC)
    if TOKENS:
        rows = frame_tokens
        block = coefficients + part.to(tl.int64) * height * width
        for k0 in range(0, points, BLOCK_K):
            n = k0 + k
            g = tl.trans(tl.load(block + n.to(tl.int64)[:, None] * width + i[None, :]))
            f = load_channels(queries + b * points * C, n.to(tl.int64) * C, n < points, c0, C, BLOCK_C)
            acc = dot(g, f, acc, OPERAND)
    else:
        rows = points
        span = tl.cdiv(end - first, splits)
        for t in range(first + part * span, tl.minimum(first + (part + 1) * span, end)):
            block = coefficients + tl.cast(t - first, tl.int64) * height * width
            frame = features + (b * stride[0] + tl.cast(t, tl.int64) * stride[1])
            for k0 in range(0, frame_tokens, BLOCK_K):
                j = k0 + k
                g = tl.load(block + i.to(tl.int64)[:, None] * width + j[None, :])
                e = load_channels(frame, token_offsets(j, W, stride, INDEX), j < frame_tokens, c0, C, BLOCK_C)
                acc = dot(g, e, acc, OPERAND)
    c = c0 + tl.arange(0, BLOCK_C)
    mask = (i < rows)[:, None] & (c < C)[None, :]
    targets = out + (part.to(tl.int64) * rows + i)[:, None] * C + c[None, :]
    if not TOKENS:
        acc += tl.load(targets, mask=mask, other=0.0)
    tl.store(targets, acc, mask=mask)


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_points_project(
    parts,
    source,
    stride,
    norms,
    gradient,
    video,
    first,
    frames,
    frame_tokens,
    W,
    splits,
    C: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gradient = the sum of the parts, less what of it lies along the source, for some frames of tokens."""
    ACC: tl.constexpr = parts.dtype.element_ty
    stride = outer_strides(stride, C)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = i < frame_tokens
    b = tl.cast(video, tl.int64)
    part = tl.program_id(1).to(tl.int64)
    t = first + part
    source += b * stride[0] + t * stride[1]
    tokens = token_offsets(i, W, stride, INDEX)
    r = tl.load(norms + (b * frames + t) * frame_tokens + i, mask=mask, other=0.0)
    row = (b * frames + t) * frame_tokens + i
    rows = part * frame_tokens + i
    along = tl.zeros((ROWS,), ACC)
    for c0 in range(0, C, BLOCK_C):
        unit = load_channels(source, tokens, mask, c0, C, BLOCK_C).to(ACC) * r[:, None]
        total = tl.zeros((ROWS, BLOCK_C), ACC)
        for split in range(splits):
            total += load_channels(parts, (rows + tl.cast(split, tl.int64) * frame_tokens) * C, mask, c0, C, BLOCK_C)
        along += tl.sum(total * unit, 1)
    # A vector so short that its norm counts as EPS is divided by a constant, and nothing is projected.
    along = tl.where(r < SHORT, along, 0.0)
    for c0 in range(0, C, BLOCK_C):
        unit = load_channels(source, tokens, mask, c0, C, BLOCK_C).to(ACC) * r[:, None]
        total = tl.zeros((ROWS, BLOCK_C), ACC)
        for split in range(splits):
            total += load_channels(parts, (rows + tl.cast(split, tl.int64) * frame_tokens) * C, mask, c0, C, BLOCK_C)
        c = c0 + tl.arange(0, BLOCK_C)
        value = (total - along[:, None] * unit).to(gradient.dtype.element_ty)
        tl.store(gradient + row[:, None] * C + c[None, :], value, mask=mask[:, None] & (c < C)[None, :])


def coefficients(points: Points, video: int, first: int, out: Tensor) -> None:
    """Fill the blocks (frames, points, tokens), in whole tiles, for some frames from the first on."""
    _, T, H, W, C = points.features.shape
    N = points.queries.shape[1]
    launch.run_configured(
        lgf_points_coefficients,
        lambda config: (triton.cdiv(N, points.tile), out.shape[2] // config["TILE_P"], len(out)),
        configs.coefficients(C, out.dtype, points.window > 0, launch.architecture(out.device)),
        points.features,
        launch.outer_strides(points.features),
        points.norms,
        points.queries,
        points.query_norms,
        points.places,
        points.state,
        points.grad_places,
        out,
        points.sharpness,
        video,
        first,
        N,
        T,
        H * W,
        W,
        C=C,
        WINDOW=points.window,
        OPERAND=launch.triton_type(points.queries.dtype),
        INDEX=launch.index_type(points.features),
        TILE=points.tile,
    )


def add_products(points: Points, video: int, first: int, blocks: Tensor, out: Tensor, tokens: bool) -> None:
    """Multiply blocks of coefficients: for the gradient of tokens (frames, H*W, C), or of points, in parts (splits, N, C)."""
    _, _, H, W, C = points.features.shape
    queries = points.sampled if points.queries.dtype != blocks.dtype else points.queries
    rows = triton.cdiv(out.shape[1], points.tile)
    launch.run_configured(
        lgf_points_products,
        lambda config: (rows, triton.cdiv(C, config["BLOCK_C"]), len(out)),
        # A sum cannot be timed by repeating it.
        configs.products(C, blocks.dtype, tokens, launch.architecture(out.device))[: None if tokens else 1],
        blocks,
        points.features,
        launch.outer_strides(points.features),
        queries,
        out,
        video,
        first,
        first + len(blocks),
        queries.shape[1],
        H * W,
        W,
        1 if tokens else len(out),
        C=C,
        TOKENS=tokens,
        OPERAND=launch.triton_type(blocks.dtype),
        INDEX=launch.index_type(points.features),
        TILE=points.tile,
    )


def project(
    parts: Tensor, source: Tensor, norms: Tensor, gradient: Tensor, video: int, first: int, splits: int
) -> None:
    """Write the gradient of frames of a source (B, T, H, W, C) from parts (frames or splits, H*W, C)."""
    _, T, H, W, C = source.shape
    channels = min(1024, max(16, triton.next_power_of_2(C)))
    rows = max(1, 4096 // channels)
    launch.run(
        lgf_points_project,
        (triton.cdiv(H * W, rows), len(parts) // splits),
        parts,
        source,
        launch.outer_strides(source),
        norms,
        gradient,
        video,
        first,
        T,
        H * W,
        W,
        splits,
        C=C,
        INDEX=launch.index_type(source),
        ROWS=rows,
        BLOCK_C=channels,
        num_warps=4,
    )
