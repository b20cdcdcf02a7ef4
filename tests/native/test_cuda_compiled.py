"""What nvcc makes of the CUDA kernels, where it is installed; no GPU is needed."""

import cuda_kernel_report
import pytest

HALVES = ("bfloat16", "float16")
#: Registers at most, and blocks on an SM at least: what the tuned kernels were cut for.
DESIGN = {
    "BandForward 4": (168, 3),
    "BandForward 8": (128, 2),
    "BandBackward 4": (255, 2),
    "BandBackward 8": (255, 1),
    "Distances Warps": (255, 1),
    "TileProducts Warps 1": (255, 1),
    "TileProducts Warps 2": (255, 1),
}
HOPPER = {
    "Distances Warpgroups": (255, 1),
    "TileProducts Warpgroups 1": (255, 1),
    "TileProducts Warpgroups 2": (255, 1),
}


@pytest.mark.slow
@pytest.mark.skipif(cuda_kernel_report.nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("arch, shared_of_sm, design", [("80", 164, DESIGN), ("90a", 228, DESIGN | HOPPER)])
def test_kernels_compile_as_designed(monkeypatch, arch, shared_of_sm, design):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # of `make sanitize`
    rows = list(cuda_kernel_report.rows(arch, shared_of_sm))
    assert not [row for row in rows if "warning" in row]
    tuned = {(row["kernel"], row["dtype"]): row for row in rows if "shared" in row}
    assert set(tuned) == {(kernel, dtype) for kernel in design for dtype in HALVES}
    assert {row["dtype"] for row in rows} >= {"float32", "float64"}
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
    for (kernel, _), row in tuned.items():
        registers, programs = design[kernel]
        assert row["registers"] <= registers and row["programs"] >= programs, row
        if kernel not in HOPPER:
            assert row["shared"] <= 99 * 1024, f"more than a block has on consumer GPUs: {row}"
