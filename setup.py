"""Build of the native modules with CMake; everything else about the package is in pyproject.toml.

The package is complete without them, so that a failed build of one fails neither the installation nor the other.
Environment variables:

    LGF_NATIVE=auto|on|off   the CPU module. on: a failed build is an error; off: do not try
    LGF_CUDA=auto|on|off     the CUDA module. auto: try where nvcc is found, and unless LGF_NATIVE=off
    CXX, CUDACXX, CMAKE_ARGS as usual
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def switch(name):
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{name}: expected auto, on or off, got {value!r}")
    return value


class CMakeExtension(Extension):
    """A module that CMake builds; `name` is the Python module and, after the last dot, the CMake target.

    `switched_by`: the environment variable that switches it on or off.
    """

    def __init__(self, name, switched_by, cmake_options=()):
        super().__init__(name, sources=[], optional=switch(switched_by) == "auto")
        self.switched_by = switched_by
        self.cmake_options = cmake_options


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        try:
            self.build_with_cmake(extension)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            message = f"lgf_kernels: native module {extension.name} not built: {reason(error)}"
            if not extension.optional:
                raise SystemExit(message) from error
            folder, target = self.place(extension)
            for stale in folder.glob(f"{target}.*"):  # of an earlier build, perhaps of other code
                stale.unlink()
            print(
                f"{message}; the package works without it ({extension.switched_by}=on: an error)",
                file=sys.stderr,
                flush=True,
            )

    def place(self, extension):
        """Return the folder of a module, and its name there."""
        *packages, target = extension.name.split(".")
        return Path(self.build_lib, *packages).resolve(), target

    def build_with_cmake(self, extension):
        import pybind11

        environment = os.environ | {"PATH": path()}
        output, target = self.place(extension)
        build = Path(self.build_temp).resolve() / target
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DLGF_VERSION={self.distribution.get_version()}",
            f"-DLGF_OUTPUT_DIR={output}",
            *extension.cmake_options,
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        try:
            run(configure, environment)
        except subprocess.CalledProcessError:
            # The build folder may be that of another place, compiler or Python.
            run([*configure, "--fresh"], environment)
        run(["cmake", "--build", build, "--target", target], environment)


def path():
    """Return PATH with the CMake and Ninja of this Python before the system's, which may be too old."""
    folders = []
    for name, folder in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
        with suppress(ImportError, AttributeError):
            folders.append(getattr(importlib.import_module(name), folder))
    return os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])


def run(command, environment):
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout, flush=True)
    if result.returncode:
        raise subprocess.CalledProcessError(result.returncode, command, result.stdout)


def reason(error):
    """Return the first error in the compiler's or CMake's output, in one line."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} not found"
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    found = re.search(r"CMake Error[^\n]*:\n((?:  [^\n]*\n|\n)+)", error.output) or re.search(
        r"error: (.+)", error.output
    )
    return " ".join(found[1].split())[:200] if found else f"{error.cmd[0]} exited with {error.returncode}"


def nvcc():
    """Return the CUDA compiler, or None."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def modules():
    if switch("LGF_NATIVE") != "off":
        yield CMakeExtension("lgf_kernels._cpu", "LGF_NATIVE")
    wanted = switch("LGF_CUDA")
    if wanted == "on" or (wanted == "auto" and nvcc() and switch("LGF_NATIVE") != "off"):
        compiler = [f"-DCMAKE_CUDA_COMPILER={nvcc()}"] if nvcc() else []
        yield CMakeExtension("lgf_kernels._cuda", "LGF_CUDA", ["-DLGF_CUDA=ON", *compiler])


setup(ext_modules=list(modules()), cmdclass={"build_ext": CMakeBuild})
