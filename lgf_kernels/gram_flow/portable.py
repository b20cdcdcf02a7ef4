"""Local Gram Flow by small matrix products: one pair of frames at a time, one block of columns at a time.

    z[y, x, dy, dx] = < q[y, x], k[y+dy, x+dx] >

The tile is a row of at most BLOCK queries against the K rows of keys above, at and below it, with a halo of r columns
on either side: a dense product of (BLOCK, C) by (C, K * (BLOCK + 2r)), batched over the rows of the frame. The keys of
successive rows overlap, so one padded block of the key frame serves all of them as a strided view; the wanted logits
are the diagonals of the product, a strided view again. Outside the frame the padding makes the products 0.

The gradient is the same product the other way round, with the gradients g on the diagonals of an otherwise zero
matrix: `sum_d g[i, d] k[i + d]`. It serves both sides of a pair, because the key side, `dk[j] = sum_d g[j - d, d]
q[j - d]`, is a query side with `transpose_window(g)` for g. Each gradient is gathered and written once.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import EPS, accumulate_dtype, lgf_pairs_shape, norms, window_mask
from ..options import LgfOptions

#: Queries of a row per tile. Wider tiles waste more of the dense product on pairs outside the window, narrower ones
#: make the product too small to be fast.
BLOCK = 16


def forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    shape = (*lgf_pairs_shape(features), options.window**2)
    logits = features.new_empty(shape, dtype=accumulate_dtype(features))
    for b, t, pair in frame_pairs(features, options):
        logits[b, t] = pair
    return logits


def backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    return features_gradient(features, {options.direction: grad_logits}, None, options)


def frame_pairs(features: Tensor, options: LgfOptions, dtype: torch.dtype | None = None) -> Iterator:
    """Yield (b, t, logits (H, W, K*K)) for every pair of successive frames. `dtype`: in which to compute."""
    B, T, H, W, _ = features.shape
    dtype = dtype or accumulate_dtype(features)
    outside = ~window_mask(H, W, options.window, features.device)
    for b in range(B):
        later, _ = normalised(features[b, 0], options, dtype)
        for t in range(T - 1):
            earlier, (later, _) = later, normalised(features[b, t + 1], options, dtype)
            queries, keys = (later, earlier) if options.direction == "backward" else (earlier, later)
            # The padding is 0, but 0 * inf and 0 * NaN are not.
            yield b, t, window_products(queries, keys, options.window).masked_fill_(outside, 0)


def features_gradient(
    features: Tensor, grad_logits: dict[str, Tensor], scale: Tensor | None, options: LgfOptions
) -> Tensor:
    """Gradient of `sum scale[i] * grad_logits[direction][i, d] * z[i, d]` over the directions given.

    `grad_logits[direction]` is (B, T-1, H, W, K*K), `scale` (B, T-1, H, W). What stands outside the frame is ignored, be
    it NaN: the logits there are constants.
    """
    B, T, H, W, _ = features.shape
    dtype, window = accumulate_dtype(features), options.window
    inside = window_mask(H, W, window, features.device)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)

    def pair_gradients(b: int, t: int) -> dict[str, Tensor]:
        pair = {direction: g[b, t].to(dtype).where(inside, 0) for direction, g in grad_logits.items()}
        return pair if scale is None else {direction: g * scale[b, t, :, :, None] for direction, g in pair.items()}

    def as_query(pair: dict[str, Tensor], query_direction: str) -> Tensor:
        """The pair's gradients as seen from the frame that `query_direction` takes the queries from."""
        sides = [g if direction == query_direction else transpose_window(g, window) for direction, g in pair.items()]
        return sides[0] if len(sides) == 1 else sides[0] + sides[1]

    for b in range(B):
        previous, (current, norm) = None, normalised(features[b, 0], options, dtype)
        previous_pair = None
        for t in range(T):
            upstream = torch.zeros_like(current)
            if previous is not None:
                upstream += window_sums(as_query(previous_pair, "backward"), previous, window)
            if t + 1 < T:
                following, following_norm = normalised(features[b, t + 1], options, dtype)
                pair = pair_gradients(b, t)
                upstream += window_sums(as_query(pair, "forward"), following, window)
            gradient[b, t] = normalised_gradient(upstream, current, norm)
            if t + 1 < T:
                previous, previous_pair, current, norm = current, pair, following, following_norm
    return gradient


def normalised(frame: Tensor, options: LgfOptions, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The frame (H, W, C) that the products are made of, and the norms (H, W, 1) it was divided by, if it was."""
    frame = frame.to(dtype)
    if options.similarity == "dot":
        return frame, None
    norm = norms(frame)
    return frame / norm.clamp_min(EPS), norm


def normalised_gradient(upstream: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    """df = (I - f^ f^T) df^ / ||f||; where the norm was clamped it is a constant and the projection falls away."""
    if norm is None:
        return upstream
    radial = torch.where(norm >= EPS, (upstream * unit).sum(-1, keepdim=True), 0)
    return torch.addcmul(upstream, radial, unit, value=-1).div_(norm.clamp_min(EPS))


def window_products(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """z[y, x, d] = < q[y, x], k[y+dy, x+dx] >, (H, W, K*K), from two frames (H, W, C)."""
    H, W, _ = queries.shape
    z = queries.new_empty(H, W, window * window)
    for columns, rows in column_blocks(keys, window):
        product = queries[:, columns] @ rows.mT
        z[:, columns] = diagonals(product, window).reshape(H, -1, window * window)
    return z


def window_sums(g: Tensor, keys: Tensor, window: int) -> Tensor:
    """s[y, x] = sum_d g[y, x, d] k[y+dy, x+dx], (H, W, C), from g (H, W, K*K) and a frame of keys (H, W, C)."""
    H = g.shape[0]
    sums = torch.empty_like(keys)
    for columns, rows in column_blocks(keys, window):
        width = columns.stop - columns.start
        band = g.new_zeros(H, width, rows.shape[1])
        diagonals(band, window).copy_(g[:, columns].reshape(H, width, window, window))
        sums[:, columns] = band @ rows
    return sums


def column_blocks(keys: Tensor, window: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield (columns of queries, their keys (H, K * (width + 2r), C) row by row), for all columns of the frame."""
    H, W, C = keys.shape
    r = window // 2
    blocks = -(-W // BLOCK)
    bounds = [W * i // blocks for i in range(blocks + 1)]
    for x0, x1 in itertools.pairwise(bounds):
        left, right = max(x0 - r, 0), min(x1 + r, W)
        halo = padded(keys[:, left:right], (r - (x0 - left), r - (right - x1), r, r))
        row = halo.shape[1] * C
        yield slice(x0, x1), halo.as_strided((H, window * halo.shape[1], C), (row, C, 1))


def padded(frame: Tensor, halo: tuple[int, int, int, int]) -> Tensor:
    """The frame (H, W, ...) with zeros to the left and right, above and below, contiguous for the views that are made of it.

    Where nothing is to be added, for a window of 1, `F.pad` keeps the strides of the frame.
    """
    return F.pad(frame, (0, 0, *halo)).contiguous()


def diagonals(tile: Tensor, window: int) -> Tensor:
    """View (H, width, K, K) of a tile (H, width, K * (width + 2r)): the keys in each query's own window."""
    H, width, keys = tile.shape
    row = keys // window
    return tile.as_strided((H, width, window, window), (width * keys, keys + 1, row, 1), tile.storage_offset())


def transpose_window(g: Tensor, window: int) -> Tensor:
    """g^T[j, e] = g[j + e, -e], 0 where j + e lies outside: the same pairs of tokens, seen from the keys."""
    H, W, _ = g.shape
    r = window // 2
    halo = padded(g, (r, r, r, r))
    column = window * window
    row = (W + 2 * r) * column
    # Stepping to the next key row moves one row down and one offset back; likewise for columns.
    strides = (row, column, row - window, column - 1)
    return halo.as_strided((H, W, window, window), strides, column - 1).reshape(H, W, column)
