"""Patch cosine: one kernel, of which each program takes a few tokens of a frame and reads their features twice.

The first sweep sums the products with the teachers and the squares, the second writes the gradient, for which the features
come from the L2 cache. The formulas are in `folding.py`. With frame weights a token's folded teacher is made in both sweeps,
channels after channels: each teacher's reciprocal norms must be known before, and are computed first, in a launch of their
own. Only the frames from the first to the last with a weight are visited, and of these those with a weight are read.

Bytes of device memory, of features in half precision: 6 an element, the floor, and 2 more with frame weights for the norms.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.registry import Implementation
from ..core.triton_blocks import SHORT, clamped_norm, exact, load_channels, outer_strides, token_offsets
from ..core.triton_norms import reciprocal_norms
from . import triton_configs as configs
from .folding import Tokens, empty_residual, empty_tokens
from .portable import backward


@triton.jit
def _weighted_frames(
    teacher,
    stride,
    norms,
    weights,
    first,
    end,
    share,
    b,
    j,
    mask,
    offsets,
    c0,
    teacher_frames,
    frame_tokens,
    C: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return share sum_k c[k] F[k] / max(||F[k]||, EPS) of the tokens j, over the frames first .. end - 1."""
    total = tl.zeros((j.shape[0], BLOCK_C), ACC)
    for k in range(first, end):
        c = tl.load(weights + k)
        if c != 0:
            frame = tl.cast(k, tl.int64)
            r = tl.load(norms + (b * teacher_frames + frame) * frame_tokens + j, mask=mask, other=0.0)
            source = teacher + (b * stride[0] + frame * stride[1])
            f = load_channels(source, offsets, mask, c0, C, BLOCK_C).to(ACC)
            total += f * (r * (c * share))[:, None]
    return total


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_patch_cosine(
    student,
    stride,
    teachers,
    strides,
    shares,
    norms,
    frame_weight,
    bounds,
    distance,
    reciprocal,
    gradient,
    frames,
    teacher_frames,
    frame_tokens,
    W,
    CHANNELS: tl.constexpr,
    STARTS: tl.constexpr,
    C: tl.constexpr,
    FRAMES: tl.constexpr,
    GRADIENT: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write 1 - r, 1 / s and, with GRADIENT, G of ROWS tokens. Teacher m has the channels of the student from STARTS[m] on."""
    ACC: tl.constexpr = distance.dtype.element_ty
    blocks = tl.cdiv(frame_tokens, ROWS)
    frame = tl.program_id(0) // blocks
    b, t = (frame // frames).to(tl.int64), (frame % frames).to(tl.int64)
    j = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    mask = j < frame_tokens
    own = outer_strides(stride, C)
    source = student + (b * own[0] + t * own[1])
    places = token_offsets(j, W, own, INDEX)
    weights = frame_weight
    first, end = 0, 0
    if FRAMES:
        weights += t * teacher_frames
        first, end = tl.load(bounds + 2 * t), tl.load(bounds + 2 * t + 1)

    square = tl.zeros((ROWS, BLOCK_C), ACC)
    r = tl.zeros((ROWS,), ACC)
    scales = ()
    for m in tl.static_range(len(teachers)):
        theirs = outer_strides(strides[m], CHANNELS[m])
        offsets = token_offsets(j, W, theirs, INDEX)
        share = exact(shares[m], ACC)
        product, length = tl.zeros((ROWS, BLOCK_C), ACC), tl.zeros((ROWS, BLOCK_C), ACC)
        for c0 in range(0, CHANNELS[m], BLOCK_C):
            h = load_channels(source + STARTS[m], places, mask, c0, CHANNELS[m], BLOCK_C).to(ACC)
            if FRAMES:
                f = _weighted_frames(
                    teachers[m], theirs, norms[m], weights, first, end, share, b, j, mask, offsets, c0,
                    teacher_frames, frame_tokens, CHANNELS[m], ACC, BLOCK_C,
                )  # fmt: skip
            else:
                target = teachers[m] + (b * theirs[0] + t * theirs[1])
                f = load_channels(target, offsets, mask, c0, CHANNELS[m], BLOCK_C).to(ACC)
                length += f * f
            square += h * h
            product += h * f
        if FRAMES:
            r += tl.sum(product, 1)
        else:
            total = tl.sum(length, 1)
            # inf - inf = NaN: a sum of squares that overflows gives NaN instead of similarities of 0.
            scale = share / clamped_norm(total) + (total - total)
            r += tl.sum(product, 1) * scale
            scales += (scale,)
    total = tl.sum(square, 1)
    s = 1.0 / clamped_norm(total) + (total - total)
    r *= s
    row = frame.to(tl.int64) * frame_tokens + j
    tl.store(distance + row, 1.0 - r, mask=mask)
    tl.store(reciprocal + row, s, mask=mask)

    if GRADIENT:
        # A vector so short that its norm counts as EPS is divided by a constant, and nothing is projected.
        along = r * tl.where(s < SHORT, s, 0.0)
        for m in tl.static_range(len(teachers)):
            theirs = outer_strides(strides[m], CHANNELS[m])
            offsets = token_offsets(j, W, theirs, INDEX)
            for c0 in range(0, CHANNELS[m], BLOCK_C):
                h = load_channels(source + STARTS[m], places, mask, c0, CHANNELS[m], BLOCK_C).to(ACC)
                if FRAMES:
                    f = _weighted_frames(
                        teachers[m], theirs, norms[m], weights, first, end, exact(shares[m], ACC), b, j, mask, offsets, c0,
                        teacher_frames, frame_tokens, CHANNELS[m], ACC, BLOCK_C,
                    )  # fmt: skip
                else:
                    target = teachers[m] + (b * theirs[0] + t * theirs[1])
                    f = load_channels(target, offsets, mask, c0, CHANNELS[m], BLOCK_C).to(ACC) * scales[m][:, None]
                g = (h * along[:, None] - f).to(gradient.dtype.element_ty)
                c = c0 + tl.arange(0, BLOCK_C)
                out = gradient + STARTS[m] + row[:, None] * C + c[None, :]
                tl.store(out, g, mask=mask[:, None] & (c < CHANNELS[m])[None, :])


def forward(
    student: Tensor, teachers: list[Tensor], shares: list[float], frame_weight: Tensor | None, needs_grad: bool
) -> Tokens:
    """Return the distances, the reciprocal norms and, if `needs_grad`, the gradient without them (`folding.Tokens`)."""
    student, *teachers = launch.usable([student, *teachers])
    B, F, H, W, C = student.shape
    channels = tuple(teacher.shape[-1] for teacher in teachers)
    tokens = empty_tokens(student, needs_grad)
    # What the kernel does not read, it is given in place of nothing.
    norms, bounds = (tokens.distance,) * len(teachers), tokens.distance
    with launch.on_device_of(student):
        if frame_weight is not None:
            norms = reciprocal_norms(teachers, "cosine", accumulate=tokens.distance.dtype)
            bounds = bounds_of(frame_weight)
        launch.run_configured(
            lgf_patch_cosine,
            lambda config: (B * F * triton.cdiv(H * W, config["ROWS"]),),
            configs.tokens(channels, student.dtype),
            student,
            launch.outer_strides(student),
            tuple(teachers),
            tuple(launch.outer_strides(teacher) for teacher in teachers),
            tuple(launch.exact(share) for share in shares),
            norms,
            tokens.distance if frame_weight is None else frame_weight,
            bounds,
            *tokens,
            F,
            teachers[0].shape[1],
            H * W,
            W,
            CHANNELS=channels,
            STARTS=tuple(itertools.accumulate(channels, initial=0))[:-1],
            C=C,
            FRAMES=frame_weight is not None,
            GRADIENT=needs_grad,
            INDEX=launch.index_type(student, *teachers),
            enable_fp_fusion=False,  # threads that share a token would disagree about its last bit
        )
    return tokens


def bounds_of(frame_weight: Tensor) -> Tensor:
    """Return for each row of weights (F, K) the first column with one and the column after the last, (F, 2)."""
    K = frame_weight.shape[1]
    k, counts = torch.arange(K, device=frame_weight.device), frame_weight != 0
    return torch.stack([torch.where(counts, k, K).amin(1), torch.where(counts, k + 1, 0).amax(1)], 1)


patch_cosine = Implementation(forward, backward, empty_residual)
