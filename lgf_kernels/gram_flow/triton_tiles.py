"""Tiles of the Local Gram Flow kernels, and the products of their tokens with their halo.

A program processes a tile of TILE_H x TILE_W tokens of one frame. The tokens of another frame in
the windows of a tile are its halo: a box of (TILE_H + K - 1) x (TILE_W + K - 1), padded to powers
of two. The dense product of a tile with its halo holds every logit of the tile and five times as
many products outside the windows. They are cheap on the tensor cores, but not in exponentials,
masks and registers, so `window_logits` gathers the logits into slots, and all further steps work on
slots:

    dense (tile, halo)   z[q, k] = < query q, key k >                    a matrix product
    slots (tile, SLOTS)  z[q, s] = z[q, key at offset (dy, dx)]          s = dy * SLOT_ROW + dx,  0 <= dy, dx < K

Tokens of a tile and of its halo are numbered row by row. SLOT_ROW is K, padded to a power of two.
"""

import triton
import triton.language as tl

from ..core.triton_blocks import dot, load_channels, outer_strides


@triton.jit
def tile_tokens(tile, W, TILE_H: tl.constexpr, TILE_W: tl.constexpr, INDEX: tl.constexpr):
    """Return the corner of a tile, and the rows and columns of its tokens."""
    across = tl.cdiv(W, TILE_W)
    y0 = (tile // across).to(INDEX) * TILE_H
    x0 = (tile % across).to(INDEX) * TILE_W
    n = tl.arange(0, TILE_H * TILE_W)
    return y0, x0, y0 + n // TILE_W, x0 + n % TILE_W


@triton.jit
def halo_tokens(
    y0, x0, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDED_ROWS: tl.constexpr, PADDED: tl.constexpr
):
    """Return rows and columns of the ROWS x COLUMNS tokens from (y0, x0) on, padded, and which are in the frame."""
    n = tl.arange(0, PADDED_ROWS * PADDED)
    y = y0 + n // PADDED
    x = x0 + n % PADDED
    wanted = (n // PADDED < ROWS) & (n % PADDED < COLUMNS)
    return y, x, wanted & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def window_slots(y, x, H, W, WINDOW: tl.constexpr, SLOT_ROW: tl.constexpr):
    """Return the key's place in the frame of each query and slot (tile, SLOTS), and whether it lies in the frame.

    The third result is which slots hold a key (SLOTS,); the others are padding.
    """
    s = tl.arange(0, SLOT_ROW * SLOT_ROW)
    used = (s // SLOT_ROW < WINDOW) & (s % SLOT_ROW < WINDOW)
    key_y = y[:, None] + (s // SLOT_ROW - WINDOW // 2)[None, :]
    key_x = x[:, None] + (s % SLOT_ROW - WINDOW // 2)[None, :]
    inside = used[None, :] & (key_y >= 0) & (key_y < H) & (key_x >= 0) & (key_x < W)
    return key_y * W + key_x, inside, used


@triton.jit
def gather_slots(z, TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 SLOT_ROW: tl.constexpr):  # fmt: skip
    """Gather (tile, halo) into (tile, SLOTS): the window's columns first, then its rows.

    Each of the two gathers is along an axis that a few lanes of a warp hold. For one gather along
    the whole halo Triton shuffles every register of a row for every slot: five times the
    instructions.
    """
    TILE: tl.constexpr = TILE_H * TILE_W
    d = tl.arange(0, SLOT_ROW)
    row = tl.arange(0, TILE * ROWS)
    dx = tl.minimum((row // ROWS % TILE_W)[:, None] + d[None, :], COLUMNS - 1)
    z = tl.gather(z.reshape(TILE * ROWS, COLUMNS), dx, axis=1)
    query = tl.arange(0, TILE)
    dy = tl.minimum((query // TILE_W)[:, None] + d[None, :], ROWS - 1)
    z = tl.gather(z.reshape(TILE, ROWS, SLOT_ROW), tl.broadcast_to(dy[:, :, None], (TILE, SLOT_ROW, SLOT_ROW)), axis=1)
    return z.reshape(TILE, SLOT_ROW * SLOT_ROW)


@triton.jit
def window_logits(
    features,
    stride,
    reciprocal_norms,
    b,
    query_t,
    key_t,
    tile,
    T,
    H,
    W,
    C: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    SLOT_ROW: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return the logits (tile, SLOTS) of a tile of queries in frame `query_t` with keys in frame `key_t`.

    Logits outside the frame are undefined: the halo is 0 there, but 0 * inf and 0 * NaN are NaN.
    """
    ROWS: tl.constexpr = triton.next_power_of_2(TILE_H + WINDOW - 1)
    COLUMNS: tl.constexpr = triton.next_power_of_2(TILE_W + WINDOW - 1)
    RADIUS: tl.constexpr = WINDOW // 2
    y0, x0, y, x = tile_tokens(tile, W, TILE_H, TILE_W, INDEX)
    in_frame = (y < H) & (x < W)
    halo_y, halo_x, halo_in_frame = halo_tokens(
        y0 - RADIUS, x0 - RADIUS, H, W, TILE_H + WINDOW - 1, TILE_W + WINDOW - 1, ROWS, COLUMNS
    )
    stride = outer_strides(stride, C)
    video = features + b.to(tl.int64) * stride[0]
    query_frame = video + query_t.to(tl.int64) * stride[1]
    key_frame = video + key_t.to(tl.int64) * stride[1]
    queries = y * stride[2] + x * stride[3]
    keys = halo_y * stride[2] + halo_x * stride[3]
    z = tl.zeros((TILE_H * TILE_W, ROWS * COLUMNS), ACC)
    for c0 in range(0, C, BLOCK_C):
        q = load_channels(query_frame, queries, in_frame, c0, C, BLOCK_C)
        k = load_channels(key_frame, keys, halo_in_frame, c0, C, BLOCK_C)
        z = dot(q, tl.trans(k), z, OPERAND)

    z = gather_slots(z, TILE_H, TILE_W, ROWS, COLUMNS, SLOT_ROW)
    frames = reciprocal_norms + b.to(tl.int64) * T * H * W
    query_norms = frames + query_t.to(tl.int64) * H * W
    key_norms = frames + key_t.to(tl.int64) * H * W
    places, inside, _ = window_slots(y, x, H, W, WINDOW, SLOT_ROW)
    z *= tl.load(key_norms + places, mask=inside, other=0.0)
    z *= tl.load(query_norms + (y * W + x), mask=in_frame, other=0.0)[:, None]
    return z


@triton.jit
def counts(weights, y, x, in_frame, W):
    """Return whether any token of a box has a weight (H, W) other than 0. NaN is other than 0."""
    weight = tl.load(weights + (y * W + x), mask=in_frame, other=0.0)
    return tl.max((weight != 0).to(tl.int32), 0) != 0


@triton.jit
def store_slots(rows, z, mask, WINDOW: tl.constexpr, SLOT_ROW: tl.constexpr, ROW: tl.constexpr):
    """Store the slots (tile, SLOTS) that hold a key, each row of a window ROW numbers after the one before it."""
    s = tl.arange(0, SLOT_ROW * SLOT_ROW)
    used = (s // SLOT_ROW < WINDOW) & (s % SLOT_ROW < ROW)
    place = s // SLOT_ROW * ROW + s % SLOT_ROW
    tl.store(rows[:, None] + place[None, :], z, mask=mask[:, None] & used[None, :])
