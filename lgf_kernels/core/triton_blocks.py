"""Functions of the Triton kernels of all families: products, exact numbers, strides, loads."""

import triton
import triton.language as tl

from .numerics import EPS

LEAST: tl.constexpr = tl.constexpr(EPS)
#: Reciprocal norms from here on belong to vectors whose norm was clamped to EPS; a little below
#: 1 / EPS, for rounding.
SHORT: tl.constexpr = tl.constexpr(0.999999 / EPS)


@triton.jit
def dot(a, b, acc, OPERAND: tl.constexpr):
    """Return acc + a b with operands of type OPERAND.

    float32 uses the tensor cores by three tf32 products (tf32x3): each factor is split into two
    parts, and the product of the two small parts is dropped. The error is below 3e-7 of sum |a b|,
    as that of float32 itself.
    """
    return tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision="tf32x3", out_dtype=acc.dtype)


@triton.jit
def exact(number, ACC: tl.constexpr):
    """Return a Python number in the accumulation type from its two float32 parts (`triton_launch.exact`)."""
    return tl.cast(number[0], ACC) + tl.cast(number[1], ACC)


@triton.jit
def clamped_norm(square):
    """Return max(sqrt(square), EPS), with EPS in the type of `square`: as a bare number it would be rounded to float32."""
    return tl.maximum(tl.sqrt(square), tl.full((), LEAST, square.dtype))


@triton.jit
def outer_strides(strides, C: tl.constexpr):
    """Return the four outer strides of a tensor of C channels, or cached logits, from `triton_launch.outer_strides`."""
    if C % 16 == 0:
        return strides[0], strides[1], strides[2], strides[3]
    else:
        return (strides[0] - 3) // 2, (strides[1] - 3) // 2, (strides[2] - 3) // 2, (strides[3] - 3) // 2


@triton.jit
def load_channels(frame, offsets, mask, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Load channels c0 .. c0 + BLOCK_C of the tokens at these offsets; 0 where masked and past channel C."""
    c = tl.arange(0, BLOCK_C)
    places = frame + c0 + (offsets[:, None] + c[None, :])
    if C % BLOCK_C == 0:
        return tl.load(places, mask=mask[:, None], other=0.0)
    else:
        return tl.load(places, mask=mask[:, None] & (c0 + c < C)[None, :], other=0.0)


@triton.jit
def token_offsets(j, W, stride, INDEX: tl.constexpr):
    """Return the offsets of the tokens j of a frame of W columns from its first element."""
    return (j // W).to(INDEX) * stride[2] + (j % W).to(INDEX) * stride[3]
