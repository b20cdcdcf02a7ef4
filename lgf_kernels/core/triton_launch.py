"""What the launchers share: types, exact numbers, index width, the device, and launching with a configuration."""

import functools
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import last_dimension_contiguous

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

#: Arguments that a kernel is not compiled anew for, whatever divides them: a resolution must not cost seconds. Strides of
#: features are not among them: that 16 divides them all but follows from the channels, and makes for wide loads.
FRAME_SIZES = (
    "T",
    "H",
    "W",
    "pairs",
    "tokens",
    "direction_stride",
    "frames",
    "frame_tokens",
    "first",
    "end",
    "splits",
    "points",
    "video",
)

INTERPRETED = triton.knobs.runtime.interpret


def operand_type(dtype: torch.dtype, accumulate: torch.dtype, by_gradient: bool = False) -> torch.dtype:
    """The type in which features are multiplied: half precision in its own, all else in the accumulation type.

    `by_gradient`: the other operand is a gradient, which float16 has not the range for.
    """
    half = (torch.bfloat16,) if by_gradient else (torch.bfloat16, torch.float16)
    return dtype if dtype in half and accumulate == torch.float32 else accumulate


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of an operand's type; the interpreter multiplies the bits of bfloat16 as if they were integers."""
    return tl.float32 if INTERPRETED and dtype.itemsize == 2 else TYPES[dtype]


def exact(number: float) -> tuple[float, float]:
    """A number as a sum of two of float32: Triton passes numbers in float32, which a loss in float64 would notice."""
    (high,) = struct.unpack("f", struct.pack("f", number))
    return high, number - high


def index_type(*tensors: Tensor) -> tl.dtype:
    """int32 where every offset within a frame fits, which is nearly always. Frames themselves are reached by int64."""
    widest = max(sum((n - 1) * s for n, s in zip(t.shape[2:], t.stride()[2:], strict=True)) for t in tensors)
    return tl.int32 if widest < 2**31 else tl.int64


def usable(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as the kernels take them: the last dimension contiguous, the other strides as they come."""
    return [last_dimension_contiguous(tensor) for tensor in tensors]


def outer_strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride()[:4]


def odd_strides(tensor: Tensor) -> tuple[int, ...]:
    """The outer strides of cached logits as 2 n + 3: whether 16 divides n follows from the resolution, and Triton, which
    specialises every number in a tuple on 1 and on 16, would compile a kernel for each. `tiles.from_odd` undoes it."""
    return tuple(2 * stride + 3 for stride in outer_strides(tensor))


@functools.cache
def architecture(device: torch.device) -> int:
    """The compute capability as one number, 90 for Hopper. The interpreter is taken for a Hopper."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side at least. The interpreter runs one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whatever device its arguments are on."""
    return torch.cuda.device_of(tensor)


def tiles(
    kernel, frames: int, frame: tuple[int, int], candidates: Sequence[NamedTuple], *arguments, **constants
) -> None:
    """Launch one program for every tile of every frame (`fastest`)."""
    H, W = frame

    def grid(config: dict) -> tuple[int]:
        return (frames * -(-H // config["TILE_H"]) * -(-W // config["TILE_W"]),)

    fastest(kernel, grid, candidates, *arguments, **constants)


def fastest(kernel, grid: Callable[[dict], tuple], candidates: Sequence[NamedTuple], *arguments, **constants) -> None:
    """Launch with the first of the candidate configurations; `grid` is the programs that one takes.

    With LGF_AUTOTUNE=1 with the fastest, which takes seconds to minutes to find, once per process and kind of call.
    """
    if os.environ.get("LGF_AUTOTUNE") == "1" and not INTERPRETED:
        run(tuned(kernel, tuple(candidates), tuple(constants)), grid, *arguments, **constants)
    else:
        config = candidates[0]._asdict()
        run(kernel, grid(config), *arguments, **constants, **config)


def run(kernel, grid, *arguments, enable_fp_fusion: bool = True, **constants) -> None:
    """Every launch of this package passes here, which is where the kernel report listens.

    Whether products and sums are fused is said each time: Triton's own choice differs between its versions.
    """
    kernel[grid](*arguments, enable_fp_fusion=enable_fp_fusion, **constants)


@functools.cache
def tuned(kernel, candidates: tuple[NamedTuple, ...], key: tuple[str, ...]):
    """The kernel, timing the candidates on the first call with new constants."""
    configs = []
    for candidate in candidates:
        meta = candidate._asdict()
        scheduling = {name: meta.pop(name) for name in ("num_warps", "num_stages")}
        configs.append(triton.Config(meta, **scheduling))
    return triton.autotune(configs, key=list(key))(kernel)
