"""Build of the CPU kernels and their bindings for AArch64, as a program that an emulator runs."""

import platform
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.builds import once, run

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
COMPILER = "aarch64-linux-gnu-g++"
#: Debian's name, and that of a build of one's own.
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")


def emulator() -> str | None:
    """Return the path of qemu's emulator of AArch64 programs, or None."""
    return next(filter(None, map(shutil.which, EMULATORS)), None)


def unsupported_reason() -> str | None:
    """Return why the kernels cannot be emulated on this machine, or None."""
    if platform.machine() == "aarch64":
        return "this machine runs the AArch64 kernels itself"
    missing = [name for name, found in ((COMPILER, shutil.which(COMPILER)), (EMULATORS[0], emulator())) if not found]
    packages = "Debian and Ubuntu have them in g++-aarch64-linux-gnu and qemu-user-static"
    return f"no {' and no '.join(missing)} to run AArch64 kernels with: {packages}" if missing else None


def flags_of_kernels() -> list[str]:
    """Return the options that CMakeLists.txt compiles kernels with."""
    text = (ROOT / "CMakeLists.txt").read_text()
    release = re.search(r'^set\(CMAKE_CXX_FLAGS_RELEASE "(.+)"\)$', text, re.MULTILINE)[1]
    return [*release.split(), *re.search(r"^set\(LGF_KERNEL_FLAGS (.+)\)$", text, re.MULTILINE)[1].split()]


def program(place: Path, csrc: Path = ROOT / "csrc") -> Path:
    """Compile and link the program in a folder, unless another process has done so or is doing so."""
    cpu = csrc / "cpu"
    plain = [HERE / "driver.cpp", cpu / "common" / "dispatch.cpp", *cpu.glob("*/bindings.cpp")]
    options = {
        **{source: ["-O1"] for source in plain},
        **{source: [*flags_of_kernels(), "-DLGF_ISA=baseline"] for source in cpu.glob("*/kernels.cpp")},
    }

    def compiled(source: Path) -> Path:
        output = place / f"{source.parent.name}-{source.stem}.o"
        shared = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fopenmp", f"-I{HERE}", f"-I{csrc}")
        run(COMPILER, *shared, *options[source], "-c", source, "-o", output)
        return output

    def build() -> None:
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(compiled, options))
        run(COMPILER, "-static", "-fopenmp", *objects, "-o", place / "kernels")

    return once(place / "kernels", build)
