"""Instructions of a tuned CUDA C++ kernel by part of its source: no GPU needed, but nvcc and nvdisasm.

  python benchmarks/tools/cuda_instructions.py "BandForward 8"              as compiled for Hopper
  python benchmarks/tools/cuda_instructions.py "BandForward 4" --arch 80    for Ampere

One row for each function that `run` calls, in two steps where it only calls others, and each loop within it: so many
instructions are compiled, once each. Their copies for warps that have diverged and slow paths of divisions, which lie
behind the end, are not counted. How often a part runs is in `benchmarks/tools/counted/`, whose ISSUED is from these rows.
"""

import here  # noqa: F401  # isort: skip

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cuda_kernel_report import CSRC, TUNED, cuobjdump, nvcc, run

FUNCTION = re.compile(r"^ *(?:static )?LGF_DEVICE (?:[\w:<>&*, ]+ [&*]?)?(\w+)\(")


class Instruction(NamedTuple):
    """An instruction, and the lines that it is compiled from: (file, line) of `run` first, of what it calls last."""

    address: int
    text: str
    lines: tuple


def nvdisasm() -> Path | None:
    """Return the disassembler with source lines, which comes with CUDA and with Triton beside `cuobjdump`."""
    beside = cuobjdump()
    return beside.with_name("nvdisasm") if beside and beside.with_name("nvdisasm").exists() else None


def disassembled(kernel: str, arch: str) -> str:
    """Return the kernel's machine code, with source lines."""
    name = next(kernels[kernel] for _, kernels in TUNED.values() if kernel in kernels)
    headers = next(headers for headers, kernels in TUNED.values() if kernel in kernels)
    family = next(family for family, (_, kernels) in TUNED.items() if kernel in kernels)
    includes = "".join(f'#include "{family}/{header}.h"\n' for header in headers)
    instance = f"template __global__ void entry<{name}>(const __grid_constant__ {name}::Params);"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        source.write_text(f"{includes}namespace lgf {{ namespace cuda {{\n{instance}\n}} }}\n")
        run(nvcc(), "-std=c++17", "-O3", f"-arch=sm_{arch}", "-lineinfo", "-cubin", f"-I{CSRC}", source, "-o", cubin)
        return run(nvdisasm(), "-c", "-gi", cubin).stdout


def instructions(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the kernel's instructions up to its end, and the labels: name -> number of the instruction there."""
    found, labels, lines, complete = [], {}, [], True
    for line in text.splitlines():
        if comment := re.match(r'\s*//## File "([^"]+)", line (\d+)', line):
            lines = [] if complete else lines
            complete = False
            lines.insert(0, (Path(comment[1]).resolve(), int(comment[2])))
        elif label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif code := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            complete = True
            found.append(Instruction(int(code[1], 16), code[2], tuple(lines)))
    end = max(i for i, instruction in enumerate(found) if instruction.text == "EXIT")
    return found[: end + 1], labels


def loops(found: list[Instruction], labels: dict[str, int]) -> list[tuple[int, int]]:
    """Return the first and the last instruction of each loop."""
    last = {}
    for i, instruction in enumerate(found):
        if (jump := re.search(r"BRA .*?`\((\.L_x_\d+)\)", instruction.text)) and labels[jump[1]] < i:
            last[labels[jump[1]]] = i
    return sorted(last.items())


def called(lines: tuple, depth: int) -> str:
    """Return the names of the functions that `run` calls to get to a line, as many as `depth`."""
    names = list(dict.fromkeys(filter(None, (function_of(file, line) for file, line in lines))))
    inner = names[names.index("run") + 1 :] if "run" in names else names  # not what calls `run`
    return " > ".join(inner[:depth]) or "run"


@cache
def function_of(file: Path, line: int) -> str:
    """Return the device function around a line of the sources."""
    before = reversed(file.read_text().splitlines()[:line]) if CSRC in file.parents else ()
    return next((match[1] for text in before if (match := FUNCTION.match(text))), "")


def rows(kernel: str, arch: str, depth: int) -> Iterator[tuple[str, str, int, Counter]]:
    """Yield functions, the loops around, instructions, and those by kind."""
    found, labels = instructions(disassembled(kernel, arch))
    repeated = loops(found, labels)
    parts = {}
    for i, instruction in enumerate(found):
        around = " ".join(f"{found[first].address:x}" for first, last in repeated if first <= i <= last)
        kind = re.sub(r"^@!?U?P\w+\s+", "", instruction.text).split(".")[0].split()[0]
        if kind != "NOP":
            parts.setdefault((called(instruction.lines, depth), around), Counter())[kind] += 1
    for (functions, around), kinds in parts.items():
        yield functions, around, kinds.total(), kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=[kernel for _, kernels in TUNED.values() for kernel in kernels])
    parser.add_argument("--arch", default="90a", help="compute capability without the dot (default: 90a)")
    parser.add_argument("--depth", type=int, default=2, help="calls that are told apart, one in another (default: 2)")
    given = parser.parse_args()
    if nvcc() is None or nvdisasm() is None:
        parser.error("needs nvcc and nvdisasm, which come with CUDA; Triton has the latter as well")
    for functions, around, count, kinds in rows(given.kernel, given.arch, given.depth):
        most = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common(4))
        print(f"{count:6}  {functions:<44} {'loop ' + around if around else '':<22} {most}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
