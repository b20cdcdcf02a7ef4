"""Launches of Triton kernels, compiled for Ampere as Triton compiles them for the same arguments, and run on the model."""

import ctypes
import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lgf_kernels.core import triton_launch as launch

from .arithmetic import TYPES
from .machine import Launch, Machine, executable
from .memory import Memory
from .parser import Program, parse

ARCHITECTURE = 80
#: Where global memory begins, and what lies between two tensors there.
ORIGIN, GAP = 0x7F0000000000, 4096
#: Threads that run side by side, so many that Python's work for an instruction is small against theirs.
SIDE_BY_SIDE = 4096


class Ampere:
    """A driver that compiles and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@contextmanager
def launched_on_model() -> Iterator[None]:
    """Let the library's launchers launch on the model within the block. The driver stays."""
    driver.set_active(Ampere())
    with launch.overridden(run=run, architecture=ARCHITECTURE):
        yield


def run(kernel, grid, *arguments, enable_fp_fusion: bool = True, **constants) -> None:
    binary = kernel.warmup(*arguments, grid=grid, enable_fp_fusion=enable_fp_fusion, **constants)
    values = list(passed(binary.src.signature.values(), arguments))
    program, code, granules = prepared(binary.asm["ptx"])
    arena = Arena([value for value in values if isinstance(value, torch.Tensor)], granules["global"])
    numbers = [arena.address(value) if isinstance(value, torch.Tensor) else value for value in values]
    numbers += [0] * (len(program.parameters) - len(numbers))  # Triton's own scratch, which these kernels do without
    parameters = {
        name: np.array([number]).astype(TYPES[kind])
        for (name, kind), number in zip(program.parameters.items(), numbers, strict=True)
    }
    shared, threads = binary.metadata.shared, 32 * binary.metadata.num_warps
    launch = Launch(program, code, parameters, arena.memory, shared, granules["shared"], threads)
    blocks = np.array([index[::-1] for index in np.ndindex(*(*grid, 1, 1)[2::-1])])
    blocks = np.column_stack([blocks, np.arange(len(blocks))])
    at_once = max(1, SIDE_BY_SIDE // threads)
    for start in range(0, len(blocks), at_once):
        Machine(launch, blocks[start : start + at_once]).run()
    arena.give_back()


def passed(signature, arguments):
    """Yield the arguments that are passed, which excludes the constants of the kernel."""
    for kind, value in zip(signature, arguments, strict=False):  # the constants come last
        if isinstance(kind, tuple):
            yield from passed(kind, value)
        elif kind != "constexpr":
            yield value


@functools.cache
def prepared(ptx: str) -> tuple[Program, list, dict[str, int]]:
    """Return the program, the effects of its instructions, and the narrowest access to each memory in bytes."""
    program = parse(ptx)
    granules = {"global": 8, "shared": 8}
    for op in itertools.chain(*program.blocks):
        if op.name in ("ld", "st") and op.space in granules:
            granules[op.space] = min(granules[op.space], np.dtype(TYPES[op.kind]).itemsize)
        elif op.name == "cp" and len(op.operands) > 2:
            granules |= {space: min(granule, int(op.operands[2], 0)) for space, granule in granules.items()}
    return program, executable(program), granules


class Arena:
    """Global memory with the storages of some tensors in it, of which only the elements of the tensors may be accessed."""

    def __init__(self, tensors: list[torch.Tensor], granule: int):
        self.storages, end = {}, GAP
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.storages:
                start = end + (storage.data_ptr() - end) % 256
                self.storages[storage.data_ptr()] = (start, storage_bytes(storage))
                end = start + storage.nbytes() + GAP
        size = end // granule * granule
        content, valid = np.zeros(size, np.uint8), np.zeros(size, bool)
        for start, data in self.storages.values():
            content[start : start + len(data)] = data
        for tensor in tensors:
            start, strides = self.address(tensor) - ORIGIN, [tensor.itemsize * stride for stride in tensor.stride()]
            elements = (*tensor.shape, tensor.itemsize), (*strides, 1)
            np.lib.stride_tricks.as_strided(valid[start:], *elements)[...] = True
        self.memory = Memory("global memory", content, granule, len(content), ORIGIN, valid.reshape(-1, granule).all(1))

    def address(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        start, _ = self.storages[storage.data_ptr()]
        return ORIGIN + start + tensor.data_ptr() - storage.data_ptr()

    def give_back(self) -> None:
        """Copy what the kernel has written to the tensors."""
        for start, data in self.storages.values():
            data[:] = self.memory.content[start : start + len(data)]


def storage_bytes(storage: torch.UntypedStorage) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()))
