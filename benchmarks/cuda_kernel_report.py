"""What nvcc makes of the CUDA C++ kernels, for `kernel_report.py`: no GPU needed, but nvcc."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc" / "cuda"
TYPES = {"f": "float32", "d": "float64", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}
#: The tuned kernels, whose shared memory does not depend on a call: header, name, rows of their tiles.
TUNED = [("forward_band.h", "BandForward", rows) for rows in (4, 8, 16)]
TUNED += [("backward_band.h", "BandBackward", rows) for rows in (4, 8)]
REGISTERS, THREADS = 65536, 2048


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def run(*command) -> subprocess.CompletedProcess:
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stdout + process.stderr)
    return process


def rows(arch: str, shared_of_sm: int) -> Iterator[dict]:
    """One row for every kernel, and one for every warning. `shared_of_sm`: shared memory of an SM in KiB."""
    options = ("-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "-o", os.devnull)
    text = run(nvcc(), *options, CSRC / "kernels.cu").stderr
    for line in re.findall(r"^.*warning.*$", text, re.M):
        yield {"arch": arch, "warning": line}
    compiled = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        text,
        re.S,
    )
    sizes = sizes_of_tuned()
    for mangled, stack, stores, loads, registers in compiled:
        kernel, dtype, tile_rows = named(mangled)
        row = {
            "arch": arch,
            "kernel": kernel,
            "rows": tile_rows,
            "dtype": dtype,
            "registers": int(registers),
            "stack": int(stack),
            "spilled": int(stores) + int(loads),
        }
        if tile_rows is not None:
            threads, shared = sizes[kernel, tile_rows]
            by_registers = REGISTERS // (-(-int(registers) // 8) * 8 * threads)
            row["shared"] = shared
            row["programs"] = min(by_registers, shared_of_sm * 1024 // (shared + 1024), THREADS // threads)
        yield row


def named(mangled: str) -> tuple[str, str, int | None]:
    """Kernel, type and, of a tuned one, rows of a tile of `entry<Kernel<Type, rows>>`, as the compiler writes it."""
    length, rest = re.search(r"entryINS0_(\d+)(\w+)", mangled).groups()
    name, arguments = rest[: int(length)], rest[int(length) + 1 :]
    dtype = next((readable for code, readable in TYPES.items() if arguments.startswith(code)), "")
    tile_rows = re.match(r"NS_\d+\w*?ELi(\d+)E", arguments)
    tuned = any(name == kernel for _, kernel, _ in TUNED)
    return name, dtype, int(tile_rows[1]) if tuned else None


def sizes_of_tuned() -> dict[tuple[str, int], tuple[int, int]]:
    """Threads and bytes of shared memory of the tuned kernels, as their sources have them."""
    lines = [f'#include "{header}"\n' for header in dict.fromkeys(header for header, *_ in TUNED)]
    lines += ["#include <cstdio>\nint main() {\n  using namespace lgf::cuda;\n  using lgf::BFloat16;\n"]
    for _, name, tile_rows in TUNED:
        kernel = f"{name}<BFloat16, {tile_rows}>"
        lines.append(f'  std::printf("%d %d\\n", int({kernel}::kThreads), int({kernel}::kSharedBytes));\n')
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "sizes.cu"), Path(folder, "sizes")
        source.write_text("".join([*lines, "}\n"]))
        run(nvcc(), "-std=c++17", "-diag-suppress=550,177", f"-I{CSRC}", source, "-o", program)
        numbers = [tuple(map(int, line.split())) for line in run(program).stdout.splitlines()]
    return {(name, tile_rows): size for (_, name, tile_rows), size in zip(TUNED, numbers, strict=True)}


def as_text(row: dict) -> str:
    head = f"sm_{row['arch']:<4}"
    if "warning" in row:
        return head + row["warning"]
    kernel = f"CUDA C++ {row['kernel']}" + (f" {row['rows']}x16" if row["rows"] else "")
    text = f"{head}{kernel:<32}{row['dtype']:<10}{row['registers']:4} registers  {row['spilled']:5} B spilled"
    return text + (f"  {row['shared'] / 1024:6.1f} KiB shared  {row['programs']:2} an SM" if "shared" in row else "")
