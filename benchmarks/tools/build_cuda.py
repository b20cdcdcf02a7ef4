"""Build of the CUDA module in place, for the GPU of this machine alone: no pip, network or git needed.

  python3 benchmarks/tools/build_cuda.py
  python3 benchmarks/tools/build_cuda.py --arch 90a     for another GPU; nothing is loaded in the end

By CMake through setup.py where setuptools, CMake and Ninja are there, else by nvcc alone. The exit code is 1 if the module that
there is in the end does not load.
"""

import here  # isort: skip

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cuda_kernel_report

CSRC = here.ROOT / "csrc" / "cuda"


def architecture() -> str:
    """Return the architecture of the GPU, as nvcc names it."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return {8: "80", 9: "90a"}.get(major, f"{10 * major + minor}")  # code for 8.0 runs on all of 8.x


def with_cmake() -> bool:
    """Return whether setup.py can build."""
    programs = (shutil.which(name) or importlib.util.find_spec(name) for name in ("cmake", "ninja"))
    return all(programs) and importlib.util.find_spec("setuptools") is not None


def by_cmake(arch: str) -> int:
    switches = {"LGF_CUDA": "on", "LGF_NATIVE": "off"}
    arguments = f"{os.environ.get('CMAKE_ARGS', '')} -DCMAKE_CUDA_ARCHITECTURES={arch}-real"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.call(command, cwd=here.ROOT, env=os.environ | switches | {"CMAKE_ARGS": arguments})


def by_nvcc(arch: str, module: Path | None = None) -> int:
    """Build with nvcc alone, in place unless `module` says otherwise."""
    import pybind11

    module = module or here.ROOT / "lgf_kernels" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    about = {"VERSION": "0", "COMPILER": "nvcc", "FLAGS": "-O3", "ARCHITECTURES": f"{arch}-real"}
    command = [
        *(
            cuda_kernel_report.nvcc(),
            "-std=c++17",
            "-O3",
            "--threads=0",
            "-shared",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
        ),
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        *(f'-DLGF_BUILD_{name}="{value}"' for name, value in about.items()),
        *(["-DLGF_HOPPER"] if arch == "90a" else []),
        *(f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))),
        *(CSRC / "module.cpp", *CSRC.glob("*/bindings.cpp"), *CSRC.glob("*/*.cu")),
        *("-o", module),
    ]
    return subprocess.call([str(word) for word in command])


def loads() -> bool:
    """Return whether the module loads on this GPU, and print why if it does not."""
    from lgf_kernels.core import native

    reason = native.load("cuda")[1] or native.loading_failure(0)
    print(reason or f"built: {native.load('cuda')[0].build_info()}", flush=True)
    return reason is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", help="such as 80, 90a or 100 (default: that of this GPU)")
    given = parser.parse_args()
    if cuda_kernel_report.nvcc() is None:
        print("build_cuda: there is no nvcc; CUDACXX or CUDA_HOME may name one.", file=sys.stderr)
        return 1
    build = by_cmake if with_cmake() else by_nvcc
    if code := build(given.arch or architecture()):
        return code
    return 0 if given.arch or loads() else 1


if __name__ == "__main__":
    sys.exit(main())
