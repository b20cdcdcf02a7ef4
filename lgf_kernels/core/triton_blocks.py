"""Functions that the kernels of every family call: products, numbers, loads."""

import triton
import triton.language as tl

from .numerics import EPS

#: 1 / EPS, the reciprocal norm of a vector so short that its norm counts as EPS; a shade less, for rounding.
SHORT: tl.constexpr = tl.constexpr(0.999999 / EPS)


@triton.jit
def dot(a, b, acc, OPERAND: tl.constexpr):
    """acc + a b with operands of type OPERAND.

    float32 goes through the tensor cores in three products of tf32 (tf32x3): each factor as a sum of two, without the
    product of the two small parts, which leaves an error below 3e-7 of sum |a b|, as that of float32 itself.
    """
    return tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision="tf32x3", out_dtype=acc.dtype)


@triton.jit
def exact(number, ACC: tl.constexpr):
    """A Python number, which reaches a kernel as two float32 numbers (`launch.exact`), in the accumulation type."""
    return tl.cast(number[0], ACC) + tl.cast(number[1], ACC)


@triton.jit
def from_odd(number):
    """A stride as it was before `triton_launch.odd_strides`."""
    return (number - 3) // 2


@triton.jit
def load_channels(frame, offsets, mask, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels c0 .. c0 + BLOCK_C of the tokens at these offsets in a frame; 0 where masked and past the last channel."""
    c = tl.arange(0, BLOCK_C)
    places = frame + c0 + (offsets[:, None] + c[None, :])
    if C % BLOCK_C == 0:
        return tl.load(places, mask=mask[:, None], other=0.0)
    else:
        return tl.load(places, mask=mask[:, None] & (c0 + c < C)[None, :], other=0.0)
