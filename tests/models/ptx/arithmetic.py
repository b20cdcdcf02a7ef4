"""Arithmetic of instructions, on arrays of one element a thread. Approximate instructions have the largest error allowed."""

import numpy as np

TYPES = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
    "bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32, "tf32": np.uint32,
}  # fmt: skip


def unsigned(bits: int) -> type:
    """Return the type of a register of so many bits."""
    return {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]


def wide(kind: str) -> str:
    """Return the type of the products of a type."""
    return kind[0] + str(2 * int(kind[1:]))


def approximate(exact: np.ndarray, error: float, dtype: type = np.float32) -> np.ndarray:
    """Return a result with its relative error, up or down by its last bits; results that are exact on a GPU stay exact."""
    scramble = (exact.astype(np.float32).view(np.uint32) * np.uint32(2654435761)) >> np.uint32(31)
    noise = np.where(scramble == 1, error, -error)
    return np.where((exact == 0) | (exact == 1), exact, exact * (1 + noise)).astype(dtype)


def flushed(x: np.ndarray) -> np.ndarray:
    """Return the values with subnormal numbers as 0."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def canonical(x: np.ndarray) -> np.ndarray:
    """Return a result with the NaN of a GPU, so that all threads have the same bits."""
    nan = np.isnan(x)
    if not nan.any():
        return x
    bits = 8 * x.dtype.itemsize
    return np.where(nan, unsigned(bits)(2 ** (bits - 1) - 1).view(x.dtype), x)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a b + c, rounded once."""
    between = np.float64 if a.dtype.itemsize < 8 else np.longdouble
    return (a.astype(between) * b.astype(between) + c.astype(between)).astype(a.dtype)


def fused_downwards(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a b + c of float32, rounded towards minus infinity."""
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the quotient of integers, rounded towards 0. It is undefined for a divisor of 0."""
    b = np.where(b == 0, b.dtype.type(1), b)
    floor = a // b
    return floor + ((floor < 0) & (floor * b != a)).astype(a.dtype)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rest of `quotient`, with the sign of the dividend."""
    return a - quotient(a, b) * np.where(b == 0, b.dtype.type(1), b)


def upper_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the upper half of the bits of products of integers."""
    if a.dtype.itemsize < 8:
        wider = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return (a.astype(wider) * b.astype(wider) >> wider.type(8 * a.dtype.itemsize)).astype(a.dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    (a_high, a_low), (b_high, b_low) = ((x >> half, x & low) for x in (a, b))
    middle = a_high * b_low + (a_low * b_low >> half)
    return a_high * b_high + (middle >> half) + (a_low * b_high + (middle & low) >> half)


def shifted(x: np.ndarray, by: np.ndarray, left: bool) -> np.ndarray:
    """Shift. All bits except the sign's are lost in a shift by as many as there are, or more."""
    bits = 8 * x.dtype.itemsize
    clamped = np.minimum(by, bits - 1).astype(x.dtype)
    result = x << clamped if left else x >> clamped
    signed = x.dtype.kind == "i" and not left
    return result if signed else np.where(by >= bits, x.dtype.type(0), result)


def bit_field(x: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return bits start .. start + length - 1, a field within the number; the last is the sign of a signed field."""
    bits = 8 * x.dtype.itemsize
    assert (start + length <= bits).all() and (length > 0).all(), "a field beyond the number"
    top = (bits - start - length).astype(x.dtype)
    return (x << top) >> (bits - length).astype(x.dtype)


def inserted(field: np.ndarray, x: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return x with its bits start .. start + length - 1 replaced by the lowest of a field."""
    assert (start + length <= 8 * x.dtype.itemsize).all(), "a field beyond the number"
    start = start.astype(np.uint64)
    mask = ((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << start
    return ((x & ~mask) | ((field.astype(np.uint64) << start) & mask)).astype(x.dtype)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Return the bits of float32 rounded to nearest, ties to even."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def tf32(x: np.ndarray) -> np.ndarray:
    """Return the bits of float32 rounded to tf32, ties away from 0."""
    bits = x.view(np.uint32)
    return np.where(np.isnan(x), bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


def towards_zero(x: np.ndarray) -> np.ndarray:
    """Round float64 to float32 like the tensor cores."""
    nearest = x.astype(np.float32)
    return np.where(np.abs(nearest.astype(np.float64)) > np.abs(x), np.nextafter(nearest, np.float32(0)), nearest)


def convert(x: np.ndarray, kind: str) -> np.ndarray:
    """Return a number in another type; for bfloat16 and tf32, which numpy has not, their bits."""
    if kind == "bf16":
        return bfloat16(x)
    if kind == "tf32":
        return tf32(x)
    if x.dtype.kind == "f" and TYPES[kind] not in (np.float16, np.float32, np.float64):
        limits = np.iinfo(TYPES[kind])
        inside = (x >= limits.min) & (x < 2.0**limits.bits / (2 if limits.min else 1))
        # Towards 0: the model knows no other rounding to integers. What does not fit is never to be used.
        return np.where(inside, x, 0).astype(TYPES[kind])
    return x.astype(TYPES[kind])


COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def compare(how: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare. Ordered comparisons are false for NaN, those with a u at the end are true."""
    if a.dtype.kind != "f":
        return COMPARISONS[how](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if how in ("num", "nan"):
        return unordered == (how == "nan")
    either = how.endswith("u")
    return (COMPARISONS[how.removesuffix("u")](a, b) & ~unordered) | (unordered & either)
