"""Local Gram Flow and its loss by small matrix products, one pair of frames and one block of columns at a time.

    z[y, x, dy, dx] = < q[y, x], k[y+dy, x+dx] >

A tile is a row of at most BLOCK queries by the K rows of keys around it, with a halo of r columns
on either side: a dense product of (BLOCK, C) by (C, K * (BLOCK + 2r)), batched over the rows of the
frame. The keys of successive rows overlap, so they are strided views of one padded block of the key
frame; the logits of the windows are the diagonals of the product, also a strided view. The padding
makes the products outside the frame 0.

The gradient `sum_d g[i, d] k[i + d]` is a product of the keys with a matrix that holds the
gradients g on its diagonals and 0 elsewhere. The same function computes the key side,
`dk[j] = sum_d g[j - d, d] q[j - d]`, which is a query side with `transpose_window(g)` for g. Each
gradient is gathered and written once.

The loss is computed one pair of frames at a time:

    KL_i = sum_d P[i, d] (log P[i, d] - log Q[i, d])          d KL_i / d zS[i, d] = (Q - P)[i, d] / tau
    L2_i = mean_d (zS[i, d] - zT[i, d])^2                     d L2_i / d zS[i, d] = 2 (zS - zT)[i, d] / count_i

The backward needs the student and the logits' gradients, K*K numbers a token, but no teacher.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.numerics import (
    accumulate_dtype,
    divided_by_norm,
    non_finite_to_nan,
    normalised_gradient,
    reduce_tokens,
    token_scale,
)
from ..core.registry import Implementation
from .options import LgfOptions
from .window import empty_residual, pairs_shape, window_mask

#: Most queries of a tile. Wider tiles compute more pairs outside the window, narrower ones make the
#: products too small to be fast.
BLOCK = 16


def flow_forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Return the logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    shape = (*pairs_shape(features), options.window**2)
    logits = features.new_empty(shape, dtype=accumulate_dtype(features))
    for b, t, pair in frame_pairs(features, options):
        logits[b, t] = pair
    return logits


def flow_backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    return features_gradient(features, {options.direction: grad_logits}, None, options)


def frame_pairs(features: Tensor, options: LgfOptions, dtype: torch.dtype | None = None) -> Iterator:
    """Yield (b, t, logits (H, W, K*K)) for every pair of successive frames, computed in `dtype`."""
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
    """Return the gradient of `sum scale[i] * grad_logits[direction][i, d] * z[i, d]` over the directions given.

    `grad_logits[direction]` is (B, T-1, H, W, K*K), `scale` (B, T-1, H, W). Logits outside the
    frame are constants: their gradient is ignored, even NaN.
    """
    B, T, H, W, _ = features.shape
    dtype, window = accumulate_dtype(features), options.window
    inside = window_mask(H, W, window, features.device)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)

    def pair_gradients(b: int, t: int) -> dict[str, Tensor]:
        pair = {direction: g[b, t].to(dtype).where(inside, 0) for direction, g in grad_logits.items()}
        return pair if scale is None else {direction: g * scale[b, t, :, :, None] for direction, g in pair.items()}

    def as_query(pair: dict[str, Tensor], query_direction: str) -> Tensor:
        """Return the pair's gradients with the queries in the frame where `query_direction` has them."""
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
    """Return the frame (H, W, C), for cosine similarity normalised, and its norms (H, W, 1) or None."""
    frame = frame.to(dtype)
    if options.similarity == "dot":
        return frame, None
    return divided_by_norm(frame)


def window_products(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Return z[y, x, d] = < q[y, x], k[y+dy, x+dx] >, (H, W, K*K), of two frames (H, W, C)."""
    H, W, _ = queries.shape
    z = queries.new_empty(H, W, window * window)
    for columns, rows in column_blocks(keys, window):
        product = queries[:, columns] @ rows.mT
        z[:, columns] = diagonals(product, window).reshape(H, -1, window * window)
    return z


def window_sums(g: Tensor, keys: Tensor, window: int) -> Tensor:
    """Return s[y, x] = sum_d g[y, x, d] k[y+dy, x+dx], (H, W, C), of g (H, W, K*K) and keys (H, W, C)."""
    H = g.shape[0]
    sums = torch.empty_like(keys)
    for columns, rows in column_blocks(keys, window):
        width = columns.stop - columns.start
        band = g.new_zeros(H, width, rows.shape[1])
        diagonals(band, window).copy_(g[:, columns].reshape(H, width, window, window))
        sums[:, columns] = band @ rows
    return sums


def column_blocks(keys: Tensor, window: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield (columns of queries, their keys (H, K * (width + 2r), C) row by row) until all columns are covered."""
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
    """Pad the frame (H, W, ...) with zeros, contiguous as its strided views require.

    `F.pad` keeps the frame's strides where it adds nothing, as for a window of 1.
    """
    return F.pad(frame, (0, 0, *halo)).contiguous()


def diagonals(tile: Tensor, window: int) -> Tensor:
    """Return the view (H, width, K, K) of a tile (H, width, K * (width + 2r)) on the keys in each query's window."""
    H, width, keys = tile.shape
    row = keys // window
    return tile.as_strided((H, width, window, window), (width * keys, keys + 1, row, 1), tile.storage_offset())


def transpose_window(g: Tensor, window: int) -> Tensor:
    """Return g^T[j, e] = g[j + e, -e], 0 where j + e lies outside: the same pairs, with keys and queries swapped."""
    H, W, _ = g.shape
    r = window // 2
    halo = padded(g, (r, r, r, r))
    column = window * window
    row = (W + 2 * r) * column
    # A step to the next row of the window is one row down and one offset back; likewise for columns.
    strides = (row, column, row - window, column - 1)
    return halo.as_strided((H, W, window, window), strides, column - 1).reshape(H, W, column)


# ---- the loss -----------------------------------------------------------------------------------------------------


def loss_forward(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the residual d KL_i / d zS, (directions, B, T-1, H, W, K*K)."""
    values = student.new_zeros(pairs_shape(student), dtype=accumulate_dtype(student))
    residual = empty_residual(student, options, needs_grad)
    share = 1 / len(options.directions)
    for index, direction in enumerate(options.directions):
        one_way = options._replace(direction=direction)
        zT = fused_pairs(teachers, teacher_weights, one_way, from_logits, values.dtype)
        divergence = Divergence(student, one_way)
        for b, t, zS in frame_pairs(student, one_way):
            value, gradient = divergence(zS, next(zT), needs_grad)
            values[b, t] += share * value
            if needs_grad:
                torch.mul(gradient, share, out=residual[index, b, t])
    return reduce_tokens(non_finite_to_nan(values), token_weight, options.reduction), residual


def loss_backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    scale = token_scale(grad_loss, token_weight, options.reduction, pairs_shape(student))
    return features_gradient(student, dict(zip(options.directions, residual, strict=True)), scale, options)


def fused_pairs(teachers, teacher_weights, options: LgfOptions, from_logits: bool, dtype: torch.dtype):
    """Yield the fused teacher's logits (H, W, K*K) of each pair of frames."""
    if from_logits:
        streams = [(z for video in teacher for z in video) for teacher in teachers]
    else:
        streams = [(z for _, _, z in frame_pairs(teacher, options, dtype)) for teacher in teachers]
    for pair in zip(*streams, strict=True):
        yield sum(w * z.to(dtype) for w, z in zip(teacher_weights, pair, strict=True))


class Divergence:
    """KL or l2 of the tokens of one pair of frames: values (H, W) and their gradients (H, W, K*K)."""

    def __init__(self, student: Tensor, options: LgfOptions):
        self.options = options
        dtype = accumulate_dtype(student)
        inside = window_mask(*student.shape[2:4], options.window, student.device)
        member = inside if options.boundary == "exclude" else torch.ones_like(inside)
        self.outside, self.count = ~inside, member.sum(-1, keepdim=True).to(dtype)
        # Added to the logits: -inf excludes a position from the softmax.
        self.bias = torch.zeros_like(member, dtype=dtype).masked_fill_(~member, -torch.inf)

    def __call__(self, zS: Tensor, zT: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
        return (self.kl if self.options.divergence == "kl" else self.l2)(zS, zT, needs_grad)

    def kl(self, zS: Tensor, zT: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
        log_p, log_q = self.log_softmax(zT), self.log_softmax(zS)
        p, q = log_p.exp(), log_q.exp()
        # Positions excluded from the softmax have -inf - -inf = NaN; with p = 0 the term is 0.
        difference = (log_p - log_q).masked_fill_(self.bias.isinf(), 0)
        # Adding Q - P, which sums to 0, cancels the rounding of the log-sums, all that is left of
        # KL near convergence.
        excess = q.sub_(p)
        value = torch.addcmul(excess, p, difference).sum(-1)
        return value, excess.div_(self.options.temperature) if needs_grad else None

    def log_softmax(self, z: Tensor) -> Tensor:
        return (z.masked_fill(self.outside, 0) / self.options.temperature).add_(self.bias).log_softmax(-1)

    def l2(self, zS: Tensor, zT: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
        difference = (zS - zT).masked_fill_(self.outside, 0)
        value = difference.square().sum(-1) / self.count.squeeze(-1)
        return value, difference * (2 / self.count) if needs_grad else None


local_gram_flow = Implementation(flow_forward, flow_backward)
lgf_kl = Implementation(loss_forward, loss_backward, empty_residual)
