"""CUDA kernels of Local Gram Flow as nvcc compiles them, where it is installed; no GPU is needed."""

import cuda_instructions
import pytest
from support.cuda_reports import ANEW, SHARED_OF_SM, check, needs_nvcc

#: Most registers, blocks of an SM by architecture, and KiB of shared memory that a block may have: on the A100, which alone
#: with Hopper takes high tiles, and on consumer GPUs.
DESIGN = {
    "BandForward 4": (168, {"80": 2, "90a": 3}, 99),
    "BandForward 8": (128, {"80": 1, "90a": 2}, 99),
    "BandForward 16": (128, {"80": 1, "90a": 1}, 163),
    "BandBackward 4": (255, {"80": 2, "90a": 2}, 99),
    "BandBackward 8": (255, {"80": 1, "90a": 1}, 99),
}


@needs_nvcc
@pytest.mark.parametrize("arch", SHARED_OF_SM)
@pytest.mark.parametrize("anew", ANEW)
def test_kernels_compile_as_designed(monkeypatch, arch, anew):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # of `make sanitize`
    check("gram_flow", DESIGN, arch, anew)


@needs_nvcc
@pytest.mark.skipif(cuda_instructions.nvdisasm() is None, reason="there is no nvdisasm")
@pytest.mark.parametrize("kernel, squares", {"BandForward 8": 16, "BandForward 4": 24}.items())
def test_a_chunk_is_multiplied_without_more_than_its_products(kernel, squares):
    """Of 32 channels with windows, 32 products and 18 loads of matrices; some more products, half of 8 channels, for norms."""
    rows = list(cuda_instructions.rows(kernel, "90a", 1))
    kinds = [kinds for functions, loops, _, kinds in rows if functions == "multiply_chunk" and loops]
    assert sum(each["HMMA"] for each in kinds) == 32 + squares
    assert sum(each["LDSM"] for each in kinds) == 18
    assert sum(each.total() for each in kinds) < 4 * 50
