"""Kernels prepared for the model of a GPU, and launches of their grids."""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from .arithmetic import TYPES
from .machine import Launch, Machine, executable
from .memory import Memory
from .parser import Program, parse

#: Threads that run side by side, so many that Python's work for an instruction is small against theirs.
SIDE_BY_SIDE = 4096


class Kernel(NamedTuple):
    """A program, the effects of its instructions, and the narrowest access to each memory in bytes."""

    program: Program
    code: list
    granules: dict[str, int]

    @property
    def parameter_bytes(self) -> int:
        return max((parameter.start + parameter.bytes for parameter in self.program.parameters.values()), default=0)


@functools.cache
def prepared(ptx: str, entry: str | None = None) -> Kernel:
    """Return the kernel of this name, or the only one."""
    program = parse(ptx, entry)
    granules = {"global": 8, "shared": 8}
    for op in itertools.chain(*program.blocks):
        if op.name in ("ld", "st") and op.space in granules:
            granules[op.space] = min(granules[op.space], np.dtype(TYPES[op.kind]).itemsize)
        elif op.name == "cp" and len(op.operands) > 2:
            granules |= {space: min(granule, int(op.operands[2], 0)) for space, granule in granules.items()}
        elif op.name == "wgmma":
            granules["shared"] = min(granules["shared"], 2)
    return Kernel(program, executable(program), granules)


def run_grid(
    kernel: Kernel, grid, threads: int, shared_bytes: int, parameters: np.ndarray, memory: Memory, **rules: bool
) -> None:
    """Run all blocks of a grid (x, y, z), some side by side. `rules`: those of `Launch` that have a default."""
    grid = (*grid, 1, 1)[:3]
    shared_granule = kernel.granules["shared"]
    launch = Launch(
        kernel.program, kernel.code, parameters, memory, shared_bytes, shared_granule, threads, grid, **rules
    )
    blocks = np.array([index[::-1] for index in np.ndindex(*grid[::-1])])
    blocks = np.column_stack([blocks, np.arange(len(blocks))])
    at_once = max(1, SIDE_BY_SIDE // threads)
    for start in range(0, len(blocks), at_once):
        Machine(launch, blocks[start : start + at_once]).run()
