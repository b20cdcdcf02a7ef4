"""Local Gram Flow and its gradient.

    z[i, d] = < f^_i, f^_{i+d} >                                                  i in one frame, i + d in the other
    df^_i = sum_d g[i, d] f^_{i+d} + sum_d g[i-d, d] f^_{i-d}                     as a query, as a key
    df_i = (df^_i - < df^_i, f^_i > f^_i) / ||f_i||                               similarity "cosine"

Forward: one program for each tile of queries (`triton_tiles`). Backward: one program for each tile
of tokens, which adds the contributions of its halos in the next and in the previous frame and
writes the gradient once: no atomics, and the same bits in every run. A token is a query of the pair
with one of these frames and a key of the pair with the other; with both directions it is both in
both pairs. The contribution of a frame is the product of (tile, halo) coefficients g with the
halo's features. For a query, g is read from the token's own window, at offset d; for a key, from
the other token's window, at offset -d.

A frame whose queries all have scale 0, as far as the tile's tokens meet them, is left out of the
sum, and a tile that is left with none of its two frames writes zeros.

The part of df^ along f^ must be known before any channel is written. With more channels than fit in
registers the products are therefore computed twice, first for that part and then for the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.numerics import accumulate_dtype
from ..core.registry import Implementation
from ..core.triton_blocks import SHORT, dot, exact, load_channels, outer_strides
from ..core.triton_norms import reciprocal_norms
from . import triton_configs as configs
from .options import LgfOptions
from .triton_tiles import counts, halo_tokens, store_slots, tile_tokens, window_logits, window_slots
from .window import pairs_shape


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_forward(
    features,
    stride,
    norms,
    logits,
    T,
    H,
    W,
    C: tl.constexpr,
    OPERAND: tl.constexpr,
    WINDOW: tl.constexpr,
    SLOT_ROW: tl.constexpr,
    REVERSE: tl.constexpr,
    INDEX: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    ACC: tl.constexpr = logits.dtype.element_ty
    tiles = tl.cdiv(H, TILE_H) * tl.cdiv(W, TILE_W)
    tile = tl.program_id(0) % tiles
    pair = tl.program_id(0) // tiles
    b, t = pair // (T - 1), pair % (T - 1)
    z = window_logits(
        features, stride, norms, b, t + REVERSE, t + 1 - REVERSE, tile, T, H, W,
        C, OPERAND, ACC, WINDOW, SLOT_ROW, TILE_H, TILE_W, BLOCK_C, INDEX,
    )  # fmt: skip
    _, _, y, x = tile_tokens(tile, W, TILE_H, TILE_W, INDEX)
    _, inside, _ = window_slots(y, x, H, W, WINDOW, SLOT_ROW)
    z = tl.where(inside, z, 0.0)
    token = pair.to(tl.int64) * H * W + (y * W + x)
    store_slots(logits + token * (WINDOW * WINDOW), z, (y < H) & (x < W), WINDOW, SLOT_ROW, WINDOW)


@triton.jit
def _coefficients(
    as_query,
    as_key,
    scale,
    y,
    x,
    other_y,
    other_x,
    other_H,
    W,
    in_frame,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    SCALED: tl.constexpr,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    SLOT_ROW: tl.constexpr,
):
    """Return g (tile, part of the halo): the factors of the halo's tokens in the gradient of the tile's tokens.

    `as_query` and `as_key` are the gradients by this pair's logits in which the tile's tokens are
    queries and keys; `scale` are the scales of the pair's queries.
    """
    own, other = y * W + x, other_y * W + other_x
    own_in_frame = (y < other_H) & (x < W)
    dy = other_y[None, :] - y[:, None] + WINDOW // 2
    dx = other_x[None, :] - x[:, None] + WINDOW // 2
    near = (dy >= 0) & (dy < WINDOW) & (dx >= 0) & (dx < WINDOW)
    linked = near & own_in_frame[:, None] & in_frame[None, :]
    slot = dy * SLOT_ROW + dx
    g = tl.zeros(near.shape, ACC)
    if QUERY:
        windows = as_query + own * (WINDOW * SLOT_ROW)
        part = tl.load(windows[:, None] + slot, mask=linked, other=0.0).to(ACC)
        if SCALED == "tokens":
            part *= tl.load(scale + own, mask=own_in_frame, other=0.0)[:, None]
        g += part
    if KEY:
        windows = as_key + other * (WINDOW * SLOT_ROW)
        reverse = (WINDOW - 1) * (SLOT_ROW + 1) - slot
        part = tl.load(windows[None, :] + reverse, mask=linked, other=0.0).to(ACC)
        if SCALED == "tokens":
            part *= tl.load(scale + other, mask=in_frame, other=0.0)[None, :]
        g += part
    return g


@triton.jit
def _side_counts(
    scale, y, x, y0, x0, other_H, W, QUERY: tl.constexpr, KEY: tl.constexpr, WINDOW: tl.constexpr,
    HALO_H: tl.constexpr, HALO_W: tl.constexpr,
):  # fmt: skip
    """Return whether any query of a pair that the tile's tokens meet, as queries or as keys, has a scale other than 0."""
    found = other_H < 0
    if QUERY:
        found |= counts(scale, y, x, (y < other_H) & (x < W), W)
    if KEY:
        ROWS: tl.constexpr = triton.next_power_of_2(HALO_H)
        COLUMNS: tl.constexpr = triton.next_power_of_2(HALO_W)
        halo_y, halo_x, in_frame = halo_tokens(
            y0 - WINDOW // 2, x0 - WINDOW // 2, other_H, W, HALO_H, HALO_W, ROWS, COLUMNS
        )
        found |= counts(scale, halo_y, halo_x, in_frame, W)
    return found


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_backward(
    features,
    stride,
    norms,
    grad_logits,
    direction_stride,
    scale,
    factor,
    gradient,
    T,
    H,
    W,
    C: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    SLOT_ROW: tl.constexpr,
    COSINE: tl.constexpr,
    FORWARD: tl.constexpr,
    BACKWARD: tl.constexpr,
    SCALED: tl.constexpr,
    SKIP_ZEROS: tl.constexpr,
    INDEX: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    HALO_H: tl.constexpr = TILE_H + WINDOW - 1
    HALO_W: tl.constexpr = TILE_W + WINDOW - 1
    COLUMNS: tl.constexpr = triton.next_power_of_2(HALO_W)
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    PASSES: tl.constexpr = 2 if COSINE and CHUNKS > 1 else 1

    stride = outer_strides(stride, C)
    tiles = tl.cdiv(H, TILE_H) * tl.cdiv(W, TILE_W)
    tile = tl.program_id(0) % tiles
    b = tl.program_id(0) // tiles // T
    t = tl.program_id(0) // tiles % T
    y0, x0, y, x = tile_tokens(tile, W, TILE_H, TILE_W, INDEX)
    in_frame = (y < H) & (x < W)
    if SKIP_ZEROS:
        next_pair = scale + (b * (T - 1) + t).to(tl.int64) * H * W
        next_H, previous_H = tl.where(t + 1 < T, H, 0), tl.where(t > 0, H, 0)
        next_counts = _side_counts(
            next_pair, y, x, y0, x0, next_H, W, FORWARD, BACKWARD, WINDOW, HALO_H, HALO_W
        )  # fmt: skip
        previous_counts = _side_counts(
            next_pair - H * W, y, x, y0, x0, previous_H, W, BACKWARD, FORWARD, WINDOW, HALO_H, HALO_W
        )  # fmt: skip
        if not (next_counts | previous_counts):
            rows = gradient + ((b * T + t).to(tl.int64) * H * W + (y * W + x)) * C
            for c0 in range(0, C, BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                zeros = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
                tl.store(rows[:, None] + c[None, :], zeros, mask=in_frame[:, None] & (c < C)[None, :])
            return
    frame_norms = norms + (b * T + t).to(tl.int64) * H * W
    video = features + b.to(tl.int64) * stride[0]
    frame = video + t.to(tl.int64) * stride[1]
    if COSINE:
        r = tl.load(frame_norms + (y * W + x), mask=in_frame, other=0.0)
    factor = exact(factor, ACC)
    if SCALED == "loss":
        factor *= tl.load(scale).to(ACC)

    along = tl.zeros((TILE_H * TILE_W,), ACC)  # < df^, f^ >
    for step in range(0, PASSES * CHUNKS):
        c0 = step % CHUNKS * BLOCK_C
        acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
        for side in tl.static_range(2):  # the next frame, then the previous one
            other_t = t + 1 - 2 * side
            other_H = tl.where((other_t >= 0) & (other_t < T), H, 0)  # a missing frame has no rows
            other_frame = video + other_t.to(tl.int64) * stride[1]
            pair = (b * (T - 1) + t - side).to(tl.int64) * H * W
            # In the pair with the next frame a token is a query of direction "forward" and a key of
            # "backward".
            forward_logits = grad_logits + pair * (WINDOW * SLOT_ROW)
            backward_logits = forward_logits + direction_stride
            if SKIP_ZEROS:
                halo_H = tl.where(next_counts if side == 0 else previous_counts, HALO_H, 0)
            else:
                halo_H = HALO_H
            for row in range(0, halo_H, ROWS):
                other_y, other_x, other_in_frame = halo_tokens(
                    y0 - WINDOW // 2 + row, x0 - WINDOW // 2, other_H, W, ROWS, HALO_W, ROWS, COLUMNS
                )
                g = _coefficients(
                    forward_logits if side == 0 else backward_logits,
                    backward_logits if side == 0 else forward_logits,
                    scale + pair, y, x, other_y, other_x, other_H, W, other_in_frame,
                    FORWARD if side == 0 else BACKWARD, BACKWARD if side == 0 else FORWARD,
                    SCALED, ACC, WINDOW, SLOT_ROW,
                )  # fmt: skip
                if COSINE:
                    other_norms = frame_norms + (1 - 2 * side) * H * W + (other_y * W + other_x)
                    g *= tl.load(other_norms, mask=other_in_frame, other=0.0)[None, :]
                places = other_y * stride[2] + other_x * stride[3]
                acc = dot(g, load_channels(other_frame, places, other_in_frame, c0, C, BLOCK_C), acc, OPERAND)
        if COSINE:
            unit = load_channels(frame, y * stride[2] + x * stride[3], in_frame, c0, C, BLOCK_C).to(ACC) * r[:, None]
            # A norm clamped to EPS is a constant: there is no projection.
            part = tl.where(r < SHORT, tl.sum(acc * unit, 1), 0.0)
            along += tl.where(step < CHUNKS, part, 0.0)
            acc = (acc - along[:, None] * unit) * r[:, None]
        if step >= (PASSES - 1) * CHUNKS:
            c = c0 + tl.arange(0, BLOCK_C)
            rows = gradient + ((b * T + t).to(tl.int64) * H * W + (y * W + x)) * C
            tl.store(rows[:, None] + c[None, :], acc * factor, mask=in_frame[:, None] & (c < C)[None, :])


def forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Return the logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    (features,) = launch.usable([features])
    B, T, H, W, C = features.shape
    accumulate = accumulate_dtype(features)
    operand = launch.operand_type(features.dtype, accumulate)
    logits = features.new_empty((*pairs_shape(features), options.window**2), dtype=accumulate)
    with launch.on_device_of(features):
        launch.tiles(
            lgf_forward,
            B * (T - 1),
            (H, W),
            configs.forward(options.window, C, 0, operand, launch.architecture(features.device)),
            features,
            launch.outer_strides(features),
            *reciprocal_norms([features], options.similarity),
            logits,
            T,
            H,
            W,
            C=C,
            OPERAND=launch.triton_type(operand),
            WINDOW=options.window,
            SLOT_ROW=configs.slot_row(options.window),
            REVERSE=options.direction == "backward",
            INDEX=launch.index_type(features, logits),
        )
    return logits


def backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    (features,) = launch.usable([features])
    with launch.on_device_of(features):
        norms = reciprocal_norms([features], options.similarity)[0]
    return features_gradient(features, norms, grad_logits.contiguous()[None], options, 1.0)


def features_gradient(
    features: Tensor,
    norms: Tensor,
    grad_logits: Tensor,
    options: LgfOptions,
    factor: float,
    scale: Tensor | None = None,
    skip_zeros: bool = False,
) -> Tensor:
    """Return the gradient of `factor * sum scale[i] * grad_logits[direction, i, d] * z[direction, i, d]`.

    `norms` are the features' reciprocal norms. `grad_logits` (directions, B, T-1, H, W, K * row) is
    contiguous, of any floating type, with a window's rows `row` apart; `scale` is one number, or
    (B, T-1, H, W) and contiguous; with `skip_zeros`, tiles of tokens of scale 0 give nothing, even
    where `grad_logits` or the features are NaN. Logits outside the frame are constants: their gradient is
    ignored, even NaN.
    """
    (features,) = launch.usable([features])
    B, T, H, W, C = features.shape
    accumulate = accumulate_dtype(features)
    operand = launch.operand_type(features.dtype, accumulate, by_gradient=True)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    with launch.on_device_of(features):
        launch.tiles(
            lgf_backward,
            B * T,
            (H, W),
            configs.backward(options.window, C, operand, launch.architecture(features.device)),
            features,
            launch.outer_strides(features),
            norms,
            grad_logits,
            grad_logits[0].numel() if options.direction == "both" else 0,
            gradient if scale is None else scale,
            launch.exact(factor),
            gradient,
            T,
            H,
            W,
            C=C,
            OPERAND=launch.triton_type(operand),
            ACC=launch.TYPES[accumulate],
            WINDOW=options.window,
            SLOT_ROW=grad_logits.shape[-1] // options.window,
            COSINE=options.similarity == "cosine",
            FORWARD="forward" in options.directions,
            BACKWARD="backward" in options.directions,
            SCALED="no" if scale is None else "loss" if scale.ndim == 0 else "tokens",
            SKIP_ZEROS=skip_zeros,
            INDEX=launch.index_type(features, gradient, grad_logits[0]),
        )
    return gradient


local_gram_flow = Implementation(forward, backward)
