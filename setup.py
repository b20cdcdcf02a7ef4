"""Builds the native modules with CMake; everything else about the package is in pyproject.toml.

The package is complete without them, so a failed build does not fail the installation. Environment variables:

    LGF_NATIVE=auto|on|off   on: a failed build is an error; off: do not try
    CXX, CMAKE_ARGS          as usual
"""

import os
import re
import shlex
import subprocess
import sys
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
    """A module that CMake builds; `name` is both the Python module and, after the last dot, the CMake target."""

    def __init__(self, name):
        super().__init__(name, sources=[], optional=switch("LGF_NATIVE") == "auto")


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        try:
            self.build_with_cmake(extension)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            message = f"lgf_kernels: native module {extension.name} not built: {reason(error)}"
            if not extension.optional:
                raise SystemExit(message) from error
            print(f"{message}; the package works without it (LGF_NATIVE=on: an error)", file=sys.stderr, flush=True)

    def build_with_cmake(self, extension):
        import pybind11

        target = extension.name.rpartition(".")[2]
        output = Path(self.build_lib).resolve() / Path(*extension.name.split(".")[:-1])
        build = Path(self.build_temp).resolve() / target
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DLGF_VERSION={self.distribution.get_version()}",
            f"-DLGF_OUTPUT_DIR={output}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        run(configure)
        run(["cmake", "--build", build, "--target", target])


def run(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout, flush=True)
    if result.returncode:
        raise subprocess.CalledProcessError(result.returncode, command, result.stdout)


def reason(error):
    """The first error in the compiler's or CMake's output, in one line."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} not found"
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    found = re.search(r"CMake Error[^\n]*:\n((?:  [^\n]*\n|\n)+)", error.output) or re.search(
        r"error: (.+)", error.output
    )
    return " ".join(found[1].split())[:200] if found else f"{error.cmd[0]} exited with {error.returncode}"


modules = [] if switch("LGF_NATIVE") == "off" else [CMakeExtension("lgf_kernels._cpu")]
setup(ext_modules=modules, cmdclass={"build_ext": CMakeBuild})
