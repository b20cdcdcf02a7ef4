"""CUDA kernels as nvcc compiles them, where it is installed; no GPU is needed."""

import cuda_kernel_report
import pytest

HALVES = ("bfloat16", "float16")
#: Largest number of registers, and blocks of an SM on Ampere (the A100) and on Hopper, for which the tuned kernels are designed.
DESIGN = {
    "BandForward 4": (168, {"80": 2, "90a": 3}),
    "BandForward 8": (128, {"80": 1, "90a": 2}),
    "BandForward 16": (128, {"80": 1, "90a": 1}),
    "BandBackward 4": (255, {"80": 2, "90a": 2}),
    "BandBackward 8": (255, {"80": 1, "90a": 1}),
    "Distances Warps": (255, {"80": 1, "90a": 1}),
    "TileProducts Warps 1": (255, {"80": 1, "90a": 1}),
    "TileProducts Warps 2": (255, {"80": 1, "90a": 1}),
}
HOPPER = {
    "Distances Warpgroups": (255, {"90a": 1}),
    "TileProducts Warpgroups 1": (255, {"90a": 1}),
    "TileProducts Warpgroups 2": (255, {"90a": 1}),
}


@pytest.mark.skipif(cuda_kernel_report.nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("arch, shared_of_sm, design", [("80", 164, DESIGN), ("90a", 228, DESIGN | HOPPER)])
@pytest.mark.parametrize(
    "anew", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as the module holds them", "compiled anew"]
)
def test_kernels_compile_as_designed(monkeypatch, arch, shared_of_sm, design, anew):
    """Where the module is there, it has what takes a minute to compile anew, but for warnings."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # of `make sanitize`
    module = None if anew else cuda_kernel_report.built_module()
    rows = list(cuda_kernel_report.rows(arch, shared_of_sm, module))
    assert not [row for row in rows if "warning" in row]
    tuned = {(row["kernel"], row["dtype"]): row for row in rows if "shared" in row}
    assert set(tuned) == {(kernel, dtype) for kernel in design for dtype in HALVES}
    assert {row["dtype"] for row in rows} >= {"float32", "float64"}
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
    for (kernel, _), row in tuned.items():
        registers, programs = design[kernel]
        assert row["registers"] <= registers and row["programs"] == programs[arch], row
        # What a block may have on Hopper, on the A100, the only ones that take high tiles, and on consumer GPUs.
        most = 227 if kernel in HOPPER else 163 if kernel == "BandForward 16" else 99
        assert row["shared"] <= most * 1024, row
