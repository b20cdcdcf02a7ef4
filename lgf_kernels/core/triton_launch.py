"""Launching of Triton kernels: types, exact numbers, index width, device, configurations."""

import functools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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

#: Arguments that Triton does not specialise on, so that a new resolution costs no compilation.
FRAME_SIZES = (
    "T", "H", "W", "pairs", "tokens", "direction_stride", "frames", "frame_tokens", "first", "end", "splits", "points", "video",
    "part_video", "teacher_frames",
)  # fmt: skip

INTERPRETED = triton.knobs.runtime.interpret


def operand_type(dtype: torch.dtype, accumulate: torch.dtype, by_gradient: bool = False) -> torch.dtype:
    """Return the type in which features are multiplied: their own for half precision, else the accumulation type.

    `by_gradient`: the other operand is a gradient, which may exceed the range of float16.
    """
    half = (torch.bfloat16,) if by_gradient else (torch.bfloat16, torch.float16)
    return dtype if dtype in half and accumulate == torch.float32 else accumulate


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's type of an operand, and for half precision in the interpreter float32.

    The interpreter multiplies the bits of bfloat16 as if they were integers.
    """
    return tl.float32 if INTERPRETED and dtype.itemsize == 2 else TYPES[dtype]


def exact(number: float) -> tuple[float, float]:
    """Split a number into two float32 numbers: Triton passes numbers in float32, too coarse for a loss in float64."""
    (high,) = struct.unpack("f", struct.pack("f", number))
    return high, number - high


def index_type(*tensors: Tensor) -> tl.dtype:
    """Return int32 if every offset within a frame fits, which is usual, else int64.

    Offsets of frames are always int64.
    """
    widest = max(sum((n - 1) * s for n, s in zip(t.shape[2:], t.stride()[2:], strict=True)) for t in tensors)
    return tl.int32 if widest < 2**31 else tl.int64


def usable(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors with a contiguous last dimension, as the kernels require; the other strides stay."""
    return [last_dimension_contiguous(tensor) for tensor in tensors]


def outer_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the outer strides as kernels take them: `triton_blocks.outer_strides` decodes them.

    Triton specialises every number in a tuple on being 1 and on divisibility by 16. Where 16 divides
    the channels, it divides the strides too, which allows wide loads. Otherwise that depends on the
    resolution, so that a new one could cost a compilation: a stride n is then passed as 2 n + 3,
    which is never 1 and always odd.
    """
    strides = tensor.stride()[:4]
    return strides if tensor.shape[-1] % 16 == 0 else tuple(2 * stride + 3 for stride in strides)


class Override(NamedTuple):
    """What `overridden` replaces.

    run           (kernel, grid, *arguments, **constants) in place of every launch
    choose        candidate configurations -> the one to launch with
    architecture  the compute capability to launch for
    """

    run: Callable[..., None] | None = None
    choose: Callable[[Sequence[NamedTuple]], NamedTuple] | None = None
    architecture: int | None = None


_override = Override()


@contextmanager
def overridden(**replaced) -> Iterator[None]:
    """Launch otherwise within the block, as the tuner and the kernel report do: fields of `Override`.

    It acts on all threads: backward runs in those of autograd.
    """
    global _override
    before, _override = _override, _override._replace(**replaced)
    try:
        yield
    finally:
        _override = before


def architecture(device: torch.device) -> int:
    """Return the compute capability as one number, such as 90 for Hopper; 90 for the interpreter."""
    return _override.architecture or _architecture(device)


@functools.cache
def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors, each of which runs at least one program; 1 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Return a context that makes the tensor's device current: Triton launches there, whatever its arguments are on."""
    return torch.cuda.device_of(tensor)


def tiles(
    kernel, frames: int, frame: tuple[int, int], candidates: Sequence[NamedTuple], *arguments, **constants
) -> None:
    """Launch one program for every tile of every frame (`run_configured`)."""
    H, W = frame

    def grid(config: dict) -> tuple[int]:
        return (frames * -(-H // config["TILE_H"]) * -(-W // config["TILE_W"]),)

    run_configured(kernel, grid, candidates, *arguments, **constants)


def autotuning() -> bool:
    """Return whether LGF_AUTOTUNE asks for the fastest configuration."""
    value = os.environ.get("LGF_AUTOTUNE") or "0"
    if value not in ("0", "1"):
        raise ValueError(f"the variable LGF_AUTOTUNE must be '0' or '1', or not set; got {value!r}.")
    return value == "1"


def run_configured(
    kernel, grid: Callable[[dict], tuple], candidates: Sequence[NamedTuple], *arguments, **constants
) -> None:
    """Launch with the first of the candidate configurations; `grid` gives the number of programs for one.

    LGF_AUTOTUNE=1 selects the fastest instead, which takes seconds to minutes, once per process and
    set of constants.
    """
    choose = _override.choose
    if autotuning() and not INTERPRETED and choose is None:
        run(tuned(kernel, tuple(candidates), tuple(constants)), grid, *arguments, **constants)
    else:
        config = (candidates[0] if choose is None else choose(candidates))._asdict()
        run(kernel, grid(config), *arguments, **constants, **config)


def run(kernel, grid, *arguments, enable_fp_fusion: bool = True, **constants) -> None:
    """Launch a kernel; every launch of this package calls this function.


    Fusion of products and sums is set for each kernel: Triton's default differs between its versions.
    """
    (_launch if _override.run is None else _override.run)(
        kernel, grid, *arguments, enable_fp_fusion=enable_fp_fusion, **constants
    )


def _launch(kernel, grid, *arguments, **constants) -> None:
    kernel[grid](*arguments, **constants)


@functools.cache
def tuned(kernel, candidates: tuple[NamedTuple, ...], key: tuple[str, ...]):
    """Return the kernel with autotuning: the first call with new constants times the candidates."""
    configs = []
    for candidate in candidates:
        meta = candidate._asdict()
        scheduling = {name: meta.pop(name) for name in ("num_warps", "num_stages")}
        configs.append(triton.Config(meta, **scheduling))
    return triton.autotune(configs, key=list(key))(kernel)
