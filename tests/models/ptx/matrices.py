"""Products of the tensor cores, with the elements in registers as in the PTX manual.

A fragment is an array (registers, threads). With g = lane // 4 and t = lane % 4 the rows and columns of a thread's elements
are listed register by register.
"""

from collections.abc import Callable

import numpy as np

from .arithmetic import from_bfloat16, towards_zero

g, t = np.arange(32) // 4, np.arange(32) % 4


def filled(shape: tuple[int, int], places, elements: np.ndarray) -> np.ndarray:
    """Return matrices (warps, *shape) in float64 from the elements (n, threads) at these places."""
    matrix = np.zeros((elements.shape[1] // 32, *shape))
    matrix[:, *map(np.array, places)] = elements.reshape(len(elements), -1, 32).swapaxes(0, 1)
    return matrix


def product(m: int, n: int, k: int, places: tuple, operands: Callable, sums: type, rounded: Callable) -> Callable:
    """Return a function from fragments a (m, k), b (k, n) and c (m, n) to the fragment a b + c."""
    a_places, b_places, c_places = places

    def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
        total = filled((m, k), a_places, operands(a)) @ filled((k, n), b_places, operands(b))
        total += filled((m, n), c_places, c.view(sums))
        return list(rounded(total[:, *map(np.array, c_places)].swapaxes(0, 1).reshape(len(c), -1)))

    return multiply


def halves(registers: np.ndarray) -> np.ndarray:
    """Return the two 16 bits of each register, one after the other."""
    pairs = registers.view(np.uint16).reshape(len(registers), -1, 2)
    return pairs.swapaxes(1, 2).reshape(2 * len(registers), -1)


def tf32(registers: np.ndarray) -> np.ndarray:
    """Return the numbers without the lowest bits, which the tensor cores ignore."""
    return (registers & np.uint32(0xFFFFE000)).view(np.float32)


SUMS = ([g, g, g + 8, g + 8], [2 * t, 2 * t + 1] * 2)
HALVES = [2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9]
OF_HALVES = (([g, g, g + 8, g + 8] * 2, HALVES[:2] * 2 + HALVES[2:] * 2), (HALVES, [g] * 4), SUMS)
OF_FEW_HALVES = (([g, g, g + 8, g + 8], HALVES[:2] * 2), (HALVES[:2], [g] * 2), SUMS)
OF_TF32 = (([g, g + 8] * 2, [t, t, t + 4, t + 4]), ([t, t + 4], [g, g]), SUMS)
#: On Hopper.
OF_MORE_FLOAT64 = (
    ([g, g + 8] * 4, [t, t, t + 4, t + 4, t + 8, t + 8, t + 12, t + 12]), ([t, t + 4, t + 8, t + 12], [g] * 4), SUMS,
)  # fmt: skip
OF_FLOAT64 = (([g], [t]), ([t], [g]), ([g, g], [2 * t, 2 * t + 1]))

#: By what PTX calls them: the shape, and the type of an operand.
SHAPES = {
    ("m16n8k16", "bf16"): product(16, 8, 16, OF_HALVES, lambda r: from_bfloat16(halves(r)), np.float32, towards_zero),
    ("m16n8k16", "f16"): product(16, 8, 16, OF_HALVES, lambda r: halves(r).view(np.float16), np.float32, towards_zero),
    ("m16n8k8", "bf16"): product(16, 8, 8, OF_FEW_HALVES, lambda r: from_bfloat16(halves(r)), np.float32, towards_zero),
    ("m16n8k8", "f16"): product(
        16, 8, 8, OF_FEW_HALVES, lambda r: halves(r).view(np.float16), np.float32, towards_zero
    ),
    ("m16n8k8", "tf32"): product(16, 8, 8, OF_TF32, tf32, np.float32, towards_zero),
    ("m8n8k4", "f64"): product(8, 8, 4, OF_FLOAT64, lambda r: r, np.float64, lambda total: total),
    ("m16n8k16", "f64"): product(16, 8, 16, OF_MORE_FLOAT64, lambda r: r, np.float64, lambda total: total),
}
