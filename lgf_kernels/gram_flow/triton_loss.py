"""The Local Gram Flow loss in one kernel: Grams, softmaxes, divergence, and its gradient by the student's logits.

    zT = sum_m w_m z_m                                                            the fused teacher, logits not features
    P = softmax(zT / tau), Q = softmax(zS / tau), u = log P - log Q               over the window
    KL_i = sum_d (P u + Q - P)[i, d]          d KL_i / d zS[i, d] = (Q - P)[i, d] / tau, zero outside the frame
    L2_i = mean_d (zS - zT)[i, d]^2           d L2_i / d zS[i, d] = 2 (zS - zT)[i, d] / count_i

The added Q - P sums to 0 and makes every term P (e^-u - 1 + u) >= 0: near convergence, where u is
small, its series avoids the cancellation of the sum.

One program for each tile of queries and direction; one whose tokens all have weight 0 writes zeros
and ends. The backward reads the student and the gradient
by the logits, K*K numbers a token, but no teacher. That gradient is kept in bfloat16 for a bfloat16
student, whose own gradient is no finer, and otherwise in the accumulation type, because float16
lacks the range.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.numerics import accumulate_dtype, reduce_tokens, token_scale
from ..core.registry import Implementation
from ..core.triton_blocks import exact, outer_strides
from ..core.triton_norms import reciprocal_norms
from . import triton_configs as configs
from .options import LgfOptions
from .triton_flow import features_gradient
from .triton_tiles import counts, store_slots, tile_tokens, window_logits, window_slots
from .window import pairs_shape


@triton.jit
def _kl_term(p, q, u):
    """Return P u + Q - P = P (e^-u - 1 + u), by the series of e^-u - 1 + u where the sum would cancel."""
    series = 0.5 - u * (1 / 6 - u * (1 / 24 - u * (1 / 120 - u * (1 / 720 - u / 5040))))
    # At SMALL the omitted terms of the series reach the precision of the type.
    SMALL: tl.constexpr = 0.25 if u.dtype == tl.float32 else 0.005
    return tl.where(tl.abs(u) < SMALL, p * u * u * series, p * u + (q - p))


@triton.jit
def _divergence(zS, zT, member, inside, inverse_tau, KL: tl.constexpr):
    """Return KL or l2 of each token (tile,), and its gradient by the student's logits (tile, SLOTS)."""
    if KL:
        s = tl.where(member, zS * inverse_tau, float("-inf"))
        t = tl.where(member, zT * inverse_tau, float("-inf"))
        s -= tl.max(s, 1)[:, None]
        t -= tl.max(t, 1)[:, None]
        q, p = tl.exp(s), tl.exp(t)
        sum_q, sum_p = tl.sum(q, 1), tl.sum(p, 1)
        q /= sum_q[:, None]
        p /= sum_p[:, None]
        u = tl.where(member, t - s, 0.0) + tl.log(sum_q / sum_p)[:, None]
        value = tl.sum(tl.where(member, _kl_term(p, q, u), 0.0), 1)
        gradient = (q - p) * inverse_tau
    else:
        difference = zS - zT
        count = tl.sum(member.to(zS.dtype), 1)
        value = tl.sum(difference * difference, 1) / count
        gradient = difference * (2.0 / count)[:, None]
    # inf - inf = NaN: an infinite divergence becomes NaN, in the gradient too.
    broken = value - value
    return value + broken, tl.where(inside, gradient + broken[:, None], 0.0)


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_kl_forward(
    features,
    strides,
    norms,
    caches,
    cache_strides,
    weights,
    inverse_tau,
    token_weight,
    values,
    residual,
    pairs,
    T,
    H,
    W,
    CHANNELS: tl.constexpr,
    HALVES: tl.constexpr,
    WINDOW: tl.constexpr,
    SLOT_ROW: tl.constexpr,
    EXCLUDE: tl.constexpr,
    KL: tl.constexpr,
    FIRST_REVERSED: tl.constexpr,
    KEEP: tl.constexpr,
    WEIGHTED: tl.constexpr,
    INDEX: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    ACC: tl.constexpr = values.dtype.element_ty
    tiles = tl.cdiv(H, TILE_H) * tl.cdiv(W, TILE_W)
    tile = tl.program_id(0) % tiles
    pair = tl.program_id(0) // tiles  # over both directions, one after the other
    reverse = FIRST_REVERSED + pair // pairs
    b = pair % pairs // (T - 1)
    t = pair % pairs % (T - 1)
    query_t, key_t = t + reverse, t + 1 - reverse
    _, _, y, x = tile_tokens(tile, W, TILE_H, TILE_W, INDEX)
    in_frame = (y < H) & (x < W)
    if WEIGHTED:
        if not counts(token_weight + (pair % pairs).to(tl.int64) * H * W, y, x, in_frame, W):
            token = pair.to(tl.int64) * H * W + (y * W + x)
            tl.store(values + token, tl.zeros((TILE_H * TILE_W,), ACC), mask=in_frame)
            if KEEP:
                zeros = tl.zeros((TILE_H * TILE_W, SLOT_ROW * SLOT_ROW), ACC)
                store_slots(residual + token * (WINDOW * SLOT_ROW), zeros, in_frame, WINDOW, SLOT_ROW, SLOT_ROW)
            return
    _, inside, used = window_slots(y, x, H, W, WINDOW, SLOT_ROW)
    member = inside if EXCLUDE else used[None, :]

    zT = tl.zeros((TILE_H * TILE_W, SLOT_ROW * SLOT_ROW), ACC)
    for m in tl.static_range(1, len(features)):
        z = window_logits(
            features[m], strides[m], norms[m], b, query_t, key_t, tile,
            T, H, W, CHANNELS[m], features[m].dtype.element_ty if HALVES[m] else ACC,
            ACC, WINDOW, SLOT_ROW, TILE_H, TILE_W, BLOCK_C, INDEX,
        )  # fmt: skip
        zT += exact(weights[m - 1], ACC) * z
    for m in tl.static_range(len(caches)):
        stride = outer_strides(cache_strides[m], WINDOW * WINDOW)
        rows = caches[m] + b.to(tl.int64) * stride[0] + t.to(tl.int64) * stride[1] + (y * stride[2] + x * stride[3])
        s = tl.arange(0, SLOT_ROW * SLOT_ROW)
        offset = s // SLOT_ROW * WINDOW + s % SLOT_ROW
        z = tl.load(rows[:, None] + offset[None, :], mask=inside & in_frame[:, None], other=0.0)
        zT += exact(weights[m], ACC) * z.to(ACC)
    zS = window_logits(
        features[0], strides[0], norms[0], b, query_t, key_t, tile,
        T, H, W, CHANNELS[0], features[0].dtype.element_ty if HALVES[0] else ACC,
        ACC, WINDOW, SLOT_ROW, TILE_H, TILE_W, BLOCK_C, INDEX,
    )  # fmt: skip
    zS, zT = tl.where(inside, zS, 0.0), tl.where(inside, zT, 0.0)
    value, gradient = _divergence(zS, zT, member, inside, exact(inverse_tau, ACC), KL)

    token = pair.to(tl.int64) * H * W + (y * W + x)
    tl.store(values + token, value, mask=in_frame)
    if KEEP:
        store_slots(residual + token * (WINDOW * SLOT_ROW), gradient, in_frame, WINDOW, SLOT_ROW, SLOT_ROW)


def forward(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the residual (`Residual`)."""
    student, *teachers = launch.usable([student, *teachers])
    features, caches = ([student], teachers) if from_logits else ([student, *teachers], [])
    B, T, H, W, _ = student.shape
    accumulate = accumulate_dtype(student)
    residual = empty_residual(student, options, needs_grad)
    kept = Residual(residual, student, options) if needs_grad else None
    values = student.new_empty((len(options.directions), *pairs_shape(student)), dtype=accumulate)
    channels = [tensor.shape[-1] for tensor in features]
    operands = [launch.operand_type(tensor.dtype, accumulate) for tensor in features]
    widest = max(operands, key=lambda operand: operand.itemsize)
    with launch.on_device_of(student):
        norms = reciprocal_norms(features, options.similarity, out=kept and kept.norms)
        launch.tiles(
            lgf_kl_forward,
            len(options.directions) * B * (T - 1),
            (H, W),
            configs.forward(
                options.window, max(channels), len(features) - 1, widest, launch.architecture(student.device)
            ),
            tuple(features),
            tuple(launch.outer_strides(tensor) for tensor in features),
            norms,
            tuple(caches),
            tuple(launch.outer_strides(cache) for cache in caches),
            tuple(launch.exact(weight) for weight in teacher_weights),
            launch.exact(1 / options.temperature),
            values if token_weight is None else token_weight.contiguous(),
            values,
            kept.slots if needs_grad else values,
            B * (T - 1),
            T,
            H,
            W,
            CHANNELS=tuple(channels),
            # Which features are multiplied in their own type. Types themselves are no constants that Triton can write down.
            HALVES=tuple(launch.triton_type(operand).primitive_bitwidth == 16 for operand in operands),
            WINDOW=options.window,
            SLOT_ROW=configs.slot_row(options.window),
            EXCLUDE=options.boundary == "exclude",
            KL=options.divergence == "kl",
            FIRST_REVERSED=int(options.direction == "backward"),
            KEEP=needs_grad,
            WEIGHTED=token_weight is not None,
            INDEX=launch.index_type(*features, *caches),
            # Fused, the sum of squares of l2 could differ between threads that share a token.
            enable_fp_fusion=options.divergence == "kl",
        )
    values = values[0] if len(values) == 1 else values.mean(0)
    return reduce_tokens(values, token_weight, options.reduction), residual


def backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    kept = Residual(residual, student, options)
    shape = pairs_shape(student)
    factor = 1 / len(options.directions)
    if token_weight is None and options.reduction != "none":
        if options.reduction == "mean":
            factor /= torch.Size(shape).numel()
        return features_gradient(student, kept.norms, kept.slots, options, factor, grad_loss)
    scale = token_scale(grad_loss, token_weight, options.reduction, shape).contiguous()
    return features_gradient(
        student, kept.norms, kept.slots, options, factor, scale, skip_zeros=token_weight is not None
    )


class Residual:
    """The tensors that a forward keeps for its backward, in one buffer of bytes.

    slots   d KL_i / d zS (directions, B, T-1, H, W, K * row); row is a power of two, which aligns a window's rows
    norms   the student's reciprocal norms (B, T, H, W)
    """

    def __init__(self, residual: Tensor, student: Tensor, options: LgfOptions):
        slots_bytes, norms_bytes = self.sizes(student, options)
        B, T, H, W, _ = student.shape
        slots, norms = residual[:slots_bytes], residual[slots_bytes : slots_bytes + norms_bytes]
        shape = len(options.directions), B, T - 1, H, W, options.window * configs.slot_row(options.window)
        self.slots = slots.view(self.slots_dtype(student))[: math.prod(shape)].view(shape)
        self.norms = norms.view(accumulate_dtype(student)).view(B, T, H, W)

    @staticmethod
    def slots_dtype(student: Tensor) -> torch.dtype:
        return torch.bfloat16 if student.dtype == torch.bfloat16 else accumulate_dtype(student)

    @classmethod
    def sizes(cls, student: Tensor, options: LgfOptions) -> tuple[int, int]:
        """Return the bytes of slots and norms.

        The slots come first, padded to 16 bytes: Triton compiles a kernel anew for a pointer of another alignment.
        """
        B, T, H, W, _ = student.shape
        slots = len(options.directions) * B * (T - 1) * H * W * options.window * configs.slot_row(options.window)
        slots_bytes = (slots * cls.slots_dtype(student).itemsize + 15) // 16 * 16
        return slots_bytes, B * T * H * W * accumulate_dtype(student).itemsize


def empty_residual(student: Tensor, options: LgfOptions, needs_grad: bool) -> Tensor:
    """Allocate the buffer of a `Residual`, empty unless `needs_grad`."""
    return student.new_empty((sum(Residual.sizes(student, options)) if needs_grad else 0,), dtype=torch.uint8)


lgf_kl = Implementation(forward, backward, empty_residual)
