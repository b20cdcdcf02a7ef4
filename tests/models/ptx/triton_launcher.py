"""Launches of Triton kernels on the model, compiled as Triton compiles them for the same arguments."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from lgf_kernels.core import triton_launch as launch

from .arena import Arena
from .arithmetic import TYPES
from .grid import Kernel, prepared, run_grid

#: Triton 3.6 has a barrier between asynchronous copies and products that read them in a pipelined loop. The PTX ISA asks for a
#: fence between the proxies as well, which Triton 3.8 has.
COPIES_NEED_FENCE = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)


class Driver:
    """A driver that compiles for an architecture and launches nothing."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@contextmanager
def launched_on_model(architecture: int) -> Iterator[None]:
    """Let the library's launchers launch on the model within the block. The driver, and that nothing is assembled, stay."""
    driver.set_active(Driver(architecture))
    # The model runs PTX: nothing needs to be assembled.
    CUDABackend.make_cubin = lambda *arguments, **options: b""
    with launch.overridden(run=run, architecture=architecture):
        yield


def run(kernel, grid, *arguments, enable_fp_fusion: bool = True, **constants) -> None:
    binary = kernel.warmup(*arguments, grid=grid, enable_fp_fusion=enable_fp_fusion, **constants)
    values = list(passed(binary.src.signature.values(), arguments))
    compiled = prepared(binary.asm["ptx"])
    arena = Arena([value for value in values if isinstance(value, torch.Tensor)], compiled.granules["global"])
    numbers = [arena.address(value) if isinstance(value, torch.Tensor) else value for value in values]
    parameters = packed(compiled, numbers)
    threads, shared_bytes = 32 * binary.metadata.num_warps, binary.metadata.shared
    run_grid(compiled, grid, threads, shared_bytes, parameters, arena.memory, copies_need_fence=COPIES_NEED_FENCE)
    arena.give_back()


def packed(kernel: Kernel, numbers: list) -> np.ndarray:
    """Return the bytes of the parameters: these, and zeros for Triton's own scratch, which these kernels do without."""
    data, parameters = np.zeros(kernel.parameter_bytes, np.uint8), kernel.program.parameters.values()
    assert len(numbers) <= len(parameters)
    for parameter, number in zip(parameters, numbers, strict=False):
        data[parameter.start :][: parameter.bytes] = np.array([number]).astype(TYPES[parameter.kind]).view(np.uint8)
    return data


def passed(signature, arguments):
    """Yield the arguments that are passed, which excludes the constants of the kernel."""
    for kind, value in zip(signature, arguments, strict=False):  # the constants come last
        if isinstance(kind, tuple):
            yield from passed(kind, value)
        elif kind != "constexpr":
            yield value
