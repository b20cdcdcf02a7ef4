"""Memory of cases, measured in one process for all tests of this one: most of what a fresh one costs is its start."""

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from lgf_bench import memory
from lgf_bench.families.base import Case


def memory_here(case: Case, name: str) -> int | None:
    """Return what `memory.peak_memory` would."""
    return _process().submit(memory._high_water_rise, case, name).result()


def memory_after_a_large_block(case: Case, name: str) -> int | None:
    """Return the same, where the process has freed a block of 31 MB before."""
    _process().submit(_free_a_large_block).result()
    return memory_here(case, name)


@functools.cache
def _process() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=memory.limit_malloc)


def _free_a_large_block() -> None:
    torch.ones(31 * 2**18).sum()
