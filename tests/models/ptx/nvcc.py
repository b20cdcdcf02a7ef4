"""PTX of single CUDA C++ kernels, as nvcc makes it of the sources of the CUDA module."""

import functools
import os
import subprocess
import tempfile
from pathlib import Path

import cuda_kernel_report

CSRC = cuda_kernel_report.CSRC
HOPPER = "90a"


@functools.cache
def compiled(kernel: str, architecture: str) -> str:
    """Return the PTX of a kernel, by its name in C++, for "80" or "90a". Other kernels of its source are left out.

    It is the same as in the PTX of the whole source, which takes several times as long; a slow test compares them.
    """
    headers = sorted(path for path in CSRC.rglob("*.h") if path.name != "bindings.h")
    lines = [f'#include "{header}"' for header in headers]
    lines += [f"using Kernel = {kernel};"]
    lines += ["template __global__ void lgf::cuda::entry<Kernel>(const __grid_constant__ Kernel::Params);"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.cu")
        source.write_text("\n".join(lines) + "\n")
        return ptx(source, architecture)


def ptx(source: Path, architecture: str) -> str:
    """Return the PTX of all kernels of a source."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    options = [
        "-std=c++17",
        "-O3",
        f"-arch=compute_{architecture}",
        *(["-DLGF_HOPPER"] if architecture == HOPPER else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "kernels.ptx")
        command = [cuda_kernel_report.nvcc(), *options, "-ptx", "-o", str(output), str(source)]
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert process.returncode == 0, process.stderr
        return output.read_text()
