"""CUDA kernels of token relations as nvcc compiles them, where it is installed; no GPU is needed."""

import pytest
from support.cuda_reports import ANEW, SHARED_OF_SM, check, needs_nvcc

#: Most registers, blocks of an SM by architecture, and KiB of shared memory that a block may have: on consumer GPUs, and on
#: Hopper for the kernels with its asynchronous products.
DESIGN = {
    "Distances Warps": (255, {"80": 1, "90a": 1}, 99),
    "TileProducts Warps 1": (255, {"80": 1, "90a": 1}, 99),
    "TileProducts Warps 2": (255, {"80": 1, "90a": 1}, 99),
    "Distances Warpgroups": (255, {"90a": 1}, 227),
    "TileProducts Warpgroups 1": (255, {"90a": 1}, 227),
    "TileProducts Warpgroups 2": (255, {"90a": 1}, 227),
}


@needs_nvcc
@pytest.mark.parametrize("arch", SHARED_OF_SM)
@pytest.mark.parametrize("anew", ANEW)
def test_kernels_compile_as_designed(monkeypatch, arch, anew):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # of `make sanitize`
    check("token_relation", DESIGN, arch, anew)
