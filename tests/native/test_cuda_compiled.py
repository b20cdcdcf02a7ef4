"""What nvcc makes of the CUDA kernels, where it is installed; no GPU is needed."""

import cuda_kernel_report
import pytest

HALVES = ("bfloat16", "float16")
#: Registers at most, and blocks that an SM holds on Ampere (the A100) and on Hopper: what the tuned kernels were cut for.
DESIGN = {
    ("BandForward", 4): (168, {"80": 2, "90a": 3}),
    ("BandForward", 8): (128, {"80": 1, "90a": 2}),
    ("BandForward", 16): (128, {"80": 1, "90a": 1}),
    ("BandBackward", 4): (255, {"80": 2, "90a": 2}),
    ("BandBackward", 8): (255, {"80": 1, "90a": 1}),
}


@pytest.mark.slow
@pytest.mark.skipif(cuda_kernel_report.nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("arch, shared_of_sm", [("80", 164), ("90a", 228)])
def test_kernels_compile_as_designed(monkeypatch, arch, shared_of_sm):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # of `make sanitize`
    rows = list(cuda_kernel_report.rows(arch, shared_of_sm))
    assert not [row for row in rows if "warning" in row]
    tuned = {(row["kernel"], row["rows"], row["dtype"]): row for row in rows if row["rows"]}
    assert set(tuned) == {(*kernel, dtype) for kernel in DESIGN for dtype in HALVES}
    assert {row["dtype"] for row in rows} >= {"float32", "float64"}
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
    for (kernel, tile_rows, _), row in tuned.items():
        registers, programs = DESIGN[kernel, tile_rows]
        assert row["registers"] <= registers and row["programs"] == programs[arch], row
        # What a block may have on the A100, the only ones that take high tiles, and on consumer GPUs.
        assert row["shared"] <= (163 if tile_rows == 16 else 99) * 1024, row
