"""What nvcc makes of the CUDA kernels, where it is installed; no GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[2] / "benchmarks" / "cuda_kernel_report.py"
spec = importlib.util.spec_from_file_location("cuda_kernel_report", REPORT)
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)

TUNED = {
    ("BandForward", "bfloat16"),
    ("BandForward", "float16"),
    ("BandBackward", "bfloat16"),
    ("BandBackward", "float16"),
    *((kernel, dtype) for kernel in ("Distances Warps", "TileProducts Warps 2") for dtype in ("bfloat16", "float16")),
}
HOPPER = {
    (kernel, dtype)
    for kernel in ("Distances Warpgroups", "TileProducts Warpgroups 1", "TileProducts Warpgroups 2")
    for dtype in ("bfloat16", "float16")
}


@pytest.mark.slow
@pytest.mark.skipif(report.nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_kernels_compile_without_warnings_and_spills(arch):
    command = [sys.executable, REPORT, "--json", "--arch", arch]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of `make sanitize`
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert not [row for row in rows if "warning" in row]
    assert {(row["kernel"], row["dtype"]) for row in rows} >= TUNED | (HOPPER if arch == "90a" else set())
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
        assert row["registers"] <= most_registers(row["kernel"], row["dtype"]), row


def most_registers(kernel, dtype):
    """Two blocks of 256 threads on an SM; one where sums of two products take 128 of the registers, or float16 needs scales."""
    if "Warp" in kernel:
        return 255
    return 160 if (kernel, dtype) == ("BandBackward", "float16") else 128
