"""Report of the CUDA C++ kernels as nvcc compiles them, for `kernel_report.py`: no GPU needed, but nvcc."""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc" / "cuda"
TYPES = {"f": "float32", "d": "float64", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}
#: By family, headers of the tuned kernels, whose shared memory does not depend on a call, and name -> type in C++.
TUNED = {
    "gram_flow": (
        ("forward_band", "backward_band"),
        {
            **{f"BandForward {rows}": f"BandForward<BFloat16, {rows}>" for rows in (4, 8, 16)},
            **{f"BandBackward {rows}": f"BandBackward<BFloat16, {rows}>" for rows in (4, 8)},
        },
    ),
    "token_relation": (
        ("distances", "products", "warps", "warpgroups"),
        {
            **{f"Distances {by}": f"Distances<{by}<BFloat16>>" for by in ("Warps", "Warpgroups")},
            **{
                f"TileProducts {by} {width}": f"TileProducts<{by}<BFloat16>, {width}>"
                for by in ("Warps", "Warpgroups")
                for width in (1, 2)
            },
        },
    ),
}
REGISTERS, THREADS = 65536, 2048


def nvcc() -> str | None:
    """Return the CUDA compiler, or None."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def cuobjdump() -> Path | None:
    """Return the tool that reads compiled kernels: the toolkit's, or the one that comes with Triton."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    if nvcc():
        folders.insert(0, Path(shutil.which(nvcc()) or nvcc()).resolve().parent)
    if triton := importlib.util.find_spec("triton"):
        folders.append(Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin"))
    return next((folder / "cuobjdump" for folder in folders if (folder / "cuobjdump").exists()), None)


def built_module() -> Path | None:
    """Return the CUDA module for this Python, if it is built of the sources as they are now and can be read."""
    module = ROOT / "lgf_kernels" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists() or cuobjdump() is None:
        return None
    sources = [ROOT / "CMakeLists.txt", ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]
    return module if all(source.stat().st_mtime < module.stat().st_mtime for source in sources) else None


class Compiled(NamedTuple):
    """A kernel, by the compiler's name for it, with registers of a thread and bytes of its stack and of spills."""

    mangled: str
    registers: int
    stack: int
    spilled: int


def compiled(arch: str) -> tuple[list[Compiled], list[str]]:
    """Return the kernels that the sources compile to, and the warnings."""
    options = ("-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "-o", os.devnull)
    text = "".join(run(nvcc(), *options, source).stderr for source in sorted(CSRC.glob("*/*.cu")))
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        text,
        re.S,
    )
    kernels = [
        Compiled(name, int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in found
    ]
    return kernels, re.findall(r"^.*(?:warning|Performance Loss).*$", text, re.M)


def held(module: Path, arch: str) -> list[Compiled]:
    """Return the kernels of a built module for an architecture. Spills lie on the stack: all of it counts as spilled."""
    text = run(cuobjdump(), "--dump-resource-usage", module).stdout
    return [
        Compiled(name, int(registers), int(stack), int(stack) + int(local))
        for part in text.split("arch = sm_")
        if re.match(rf"{arch}\n", part)
        for name, registers, stack, local in re.findall(
            r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part
        )
    ]


def run(*command) -> subprocess.CompletedProcess:
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stdout + process.stderr)
    return process


def rows(arch: str, shared_of_sm: int, module: Path | None = None) -> Iterator[dict]:
    """Yield one row for every kernel, and one for every warning, such as that asynchronous products have to wait.

    `shared_of_sm`: shared memory of an SM in KiB. `module`: read this one instead of compiling, if it is built for the
    architecture; that takes no time, but warnings are not known.
    """
    kernels, warnings = held(module, arch) if module else [], []
    if not kernels:
        kernels, warnings = compiled(arch)
    for line in warnings:
        yield {"arch": arch, "warning": line}
    sizes = sizes_of_tuned()
    for mangled, registers, stack, spilled in kernels:
        kernel, dtype = named(mangled)
        if "Warpgroups" in kernel and arch != "90a":
            continue  # compiled for all architectures, but empty except on Hopper
        row = {
            "arch": arch,
            "kernel": kernel,
            "dtype": dtype,
            "registers": registers,
            "stack": stack,
            "spilled": spilled,
        }
        if kernel in sizes:
            threads, shared = sizes[kernel]
            by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
            row["shared"] = shared
            row["programs"] = min(by_registers, shared_of_sm * 1024 // (shared + 1024), THREADS // threads)
        yield row


def named(mangled: str) -> tuple[str, str]:
    """Return kernel and type of a mangled `entry<Kernel<Type, number>>` or `entry<Kernel<Products<Type>, number>>`."""
    rest, names = re.search(r"entryINS0_(\w+)", mangled)[1], []
    while rest[0].isdigit():
        length = re.match(r"\d+", rest)[0]
        name, rest = rest[len(length) :][: int(length)], rest[len(length) + int(length) + 1 :]
        names.append(name)
        rest = rest.removeprefix("NS0_")
    code, dtype = next((item for item in TYPES.items() if rest.startswith(item[0])), ("", ""))
    number = re.match(r"E*Li(\d+)", rest.removeprefix(code))
    return " ".join([*names, number[1]] if number else names), dtype


@cache
def sizes_of_tuned() -> dict[str, tuple[int, int]]:
    """Return threads and bytes of shared memory of the tuned kernels, as their sources have them."""
    kernels = {name: kernel for _, of_family in TUNED.values() for name, kernel in of_family.items()}
    lines = [f'#include "{family}/{header}.h"\n' for family, (headers, _) in TUNED.items() for header in headers]
    lines += ["#include <cstdio>\nint main() {\n  using namespace lgf::cuda;\n  using lgf::BFloat16;\n"]
    for kernel in kernels.values():
        lines.append(f"  {{ using K = {kernel}; ")
        lines.append('std::printf("%d %d\\n", int(K::kThreads), int(K::kSharedBytes)); }\n')
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "sizes.cu"), Path(folder, "sizes")
        source.write_text("".join([*lines, "}\n"]))
        run(nvcc(), "-std=c++17", "-diag-suppress=550,177", f"-I{CSRC}", source, "-o", program)
        numbers = [tuple(map(int, line.split())) for line in run(program).stdout.splitlines()]
    return dict(zip(kernels, numbers, strict=True))


def as_text(row: dict) -> str:
    head = f"sm_{row['arch']:<4}"
    if "warning" in row:
        return head + row["warning"]
    text = head + "CUDA C++ {kernel:<27}{dtype:<10}{registers:4} registers  {spilled:5} B spilled".format(**row)
    return text + (f"  {row['shared'] / 1024:6.1f} KiB shared  {row['programs']:2} an SM" if "shared" in row else "")
