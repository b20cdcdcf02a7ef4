"""Reciprocal norms of all tokens, in one launch: r = 1 / max(||f||, EPS).

Cosine similarity multiplies the logits by them. Normalised copies of the features would take as
much memory as the features and, in half precision, lose the gradient's accuracy: where neighbours
are similar, the gradient is a small difference of large terms.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_launch as launch
from .numerics import accumulate_dtype
from .triton_blocks import clamped_norm, outer_strides

#: Tokens of a program, and channels it reads at a time: 16 bytes in half precision for each thread
#: of 4 warps.
ROWS, BLOCK_C = 32, 64


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_reciprocal_norms(
    tensors,
    strides,
    norms,
    tokens,
    T,
    H,
    W,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(tokens, ROWS)
    which = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    x = token % W
    y = token // W % H
    t = token // W // H % T
    b = token // W // H // T
    for m in tl.static_range(len(tensors)):
        if which == m:
            stride = outer_strides(strides[m], CHANNELS[m])
            rows = tensors[m] + (b * stride[0] + t * stride[1] + y * stride[2] + x * stride[3])
            total = tl.zeros((ROWS,), ACC)
            for c0 in range(0, CHANNELS[m], BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                mask = (token < tokens)[:, None] & (c < CHANNELS[m])[None, :]
                f = tl.load(rows[:, None] + c[None, :], mask=mask, other=0.0).to(ACC)
                total += tl.sum(f * f, 1)
            # inf - inf = NaN: a sum of squares that overflows gives NaN instead of similarities of 0.
            r = 1.0 / clamped_norm(total) + (total - total)
            tl.store(norms[m] + token, r, mask=token < tokens)


def reciprocal_norms(
    tensors: Sequence[Tensor], similarity: str, out: Tensor | None = None, accumulate: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Return the reciprocal norms (B, T, H, W) of each of several features (B, T, H, W, C); 1 for similarity "dot".

    The features may differ in C and type. The first decides the accumulation type unless it is
    given; `out`, if given, receives its norms.
    """
    B, T, H, W, _ = tensors[0].shape
    accumulate = accumulate or accumulate_dtype(tensors[0])
    norms = [tensors[0].new_empty((B, T, H, W), dtype=accumulate) for _ in tensors[out is not None :]]
    norms = (*([] if out is None else [out]), *norms)
    if similarity == "dot":
        for norm in norms:
            norm.fill_(1)
        return norms
    tokens = B * T * H * W
    launch.run(
        lgf_reciprocal_norms,
        (len(tensors) * triton.cdiv(tokens, ROWS),),
        tuple(tensors),
        tuple(launch.outer_strides(tensor) for tensor in tensors),
        norms,
        tokens,
        T,
        H,
        W,
        CHANNELS=tuple(tensor.shape[-1] for tensor in tensors),
        ACC=launch.TYPES[accumulate],
        ROWS=ROWS,
        BLOCK_C=BLOCK_C,
        num_warps=4,
        enable_fp_fusion=False,  # threads that share a token could differ in the last bit of what they all write
    )
    return norms
