"""Compile the CUDA C++ kernels without a GPU, and print what the assembler says they take of one.

python benchmarks/cuda_kernel_report.py                 registers and spills for Ampere and Hopper
python benchmarks/cuda_kernel_report.py --arch 90a      a part of it
python benchmarks/cuda_kernel_report.py --json          one JSON object a line
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCES = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
TYPES = {"f": "float32", "d": "float64", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def assembler_output(source: Path, arch: str) -> str:
    command = [
        nvcc(),
        "-std=c++17",
        "-O3",
        f"-arch=sm_{arch}",
        "-cubin",
        "-Xptxas",
        "-v",
        "-o",
        os.devnull,
        str(source),
    ]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stdout + process.stderr)
    return process.stderr


def rows(arch: str) -> Iterator[dict]:
    """One row for every kernel, and one for every warning, that asynchronous products are made to wait included."""
    text = "".join(assembler_output(source, arch) for source in SOURCES)
    for line in re.findall(r"^.*(?:warning|Performance Loss).*$", text, re.M):
        yield {"arch": arch, "warning": line}
    compiled = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        text,
        re.S,
    )
    for mangled, stack, stores, loads, registers in compiled:
        kernel, dtype = named(mangled)
        if "Warpgroups" in kernel and arch != "90a":
            continue  # Hopper's alone; elsewhere they are there but do nothing
        yield {
            "arch": arch,
            "kernel": kernel,
            "dtype": dtype,
            "registers": int(registers),
            "stack": int(stack),
            "spilled": int(stores) + int(loads),
        }


def named(mangled: str) -> tuple[str, str]:
    """The kernel and the type of `entry<Kernel<Type>>` or `entry<Kernel<Products<Type>, width>>`, as the compiler writes it."""
    rest, names = re.search(r"entryINS0_(\w+)", mangled)[1], []
    while rest[0].isdigit():
        length = re.match(r"\d+", rest)[0]
        name, rest = rest[len(length) :][: int(length)], rest[len(length) + int(length) + 1 :]
        names.append(name)
        rest = rest.removeprefix("NS0_")
    code, dtype = next(item for item in TYPES.items() if rest.startswith(item[0]))
    width = re.match(r"E*Li(\d)", rest.removeprefix(code))
    return " ".join([*names, width[1]] if width else names), dtype


def as_text(row: dict) -> str:
    if "warning" in row:
        return f"sm_{row['arch']:<5}{row['warning']}"
    return "sm_{arch:<5}{kernel:<28}{dtype:<10}{registers:4} registers  {spilled:4} B spilled".format(**row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["80", "90a"], help="80, 90a, or any other that nvcc knows")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    arguments = parser.parse_args()
    if nvcc() is None:
        print("there is no nvcc here", file=sys.stderr)
        return 1
    for arch in arguments.arch:
        for row in rows(arch):
            print(json.dumps(row) if arguments.json else as_text(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
