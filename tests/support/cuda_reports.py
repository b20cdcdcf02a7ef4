"""What CUDA C++ kernels compile to by nvcc, for GPUs that this machine need not have."""

from functools import cache

import cuda_kernel_report
import pytest

HALVES = ("bfloat16", "float16")
#: Of Ampere (the A100) and Hopper: shared memory of an SM in KiB.
SHARED_OF_SM = {"80": 164, "90a": 228}

needs_nvcc = pytest.mark.skipif(cuda_kernel_report.nvcc() is None, reason="there is no nvcc")
#: Where the module is there, it has what takes a minute to compile anew, but for warnings.
ANEW = [
    pytest.param(False, id="as the module holds them"),
    pytest.param(True, id="compiled anew", marks=pytest.mark.slow),
]


@cache
def report(arch: str, anew: bool) -> list[dict]:
    """Return the rows of all kernels for an architecture, from the built module or compiled anew."""
    module = None if anew else cuda_kernel_report.built_module()
    return list(cuda_kernel_report.rows(arch, SHARED_OF_SM[arch], module))


def check(family: str, design: dict, arch: str, anew: bool) -> None:
    """Assert that the tuned kernels of a family are those of its design and keep to it, and that no kernel spills.

    `design`: kernel -> (most registers of a thread, blocks of an SM by architecture, most KiB of shared memory of a block).
    """
    rows = report(arch, anew)
    assert not [row for row in rows if "warning" in row]
    assert {row["dtype"] for row in rows} >= {"float32", "float64"}
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
    _, kernels = cuda_kernel_report.TUNED[family]
    tuned = {(row["kernel"], row["dtype"]): row for row in rows if row["kernel"] in kernels}
    assert set(tuned) == {
        (kernel, dtype) for kernel, (_, blocks, _) in design.items() if arch in blocks for dtype in HALVES
    }
    for (kernel, _), row in tuned.items():
        registers, blocks, shared = design[kernel]
        assert row["registers"] <= registers and row["programs"] == blocks[arch], row
        assert row["shared"] <= shared * 1024, row
