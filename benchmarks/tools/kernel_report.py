"""Registers, shared memory and instructions of every kernel, compiled ahead of time without a GPU.

The Triton kernels are compiled exactly as the launchers would launch them: the launches of a call are recorded, not run. For
each the table gives registers a thread, bytes spilled to local memory, shared memory, how many programs share an SM,
matrix instructions of the tensor cores, and instructions in all, from the machine code. The CUDA C++ kernels follow, where
nvcc is installed, for Ampere and Hopper. `kernel_counts.py` counts their work.

  python benchmarks/tools/kernel_report.py                                the table for Ampere, Hopper and Blackwell
  python benchmarks/tools/kernel_report.py --arch 90 --channels 256       a part of it
  python benchmarks/tools/kernel_report.py --operator token_relation      of one loss
  python benchmarks/tools/kernel_report.py --operator cuda                the CUDA C++ kernels
  python benchmarks/tools/kernel_report.py --json                         one JSON object a line
"""

import here  # noqa: F401  # isort: skip

if __name__ == "__main__":  # before the imports, so that an error of one line names a missing package
    import sys

    from lgf_cli.main import imported

    sys.exit(imported("kernel_report.py", "kernel_report", "triton tqdm").main())

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel is not compiled

import cuda_kernel_report
import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import lgf_kernels  # noqa: F401  # whose families fill the table of operators
from lgf_kernels.core import triton_launch as launch
from lgf_kernels.core.registry import OPERATORS, Call

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
#: Shared memory of an SM and of one program at most, in KiB, by architecture (CUDA programming guide, compute capabilities).
SHARED = {80: (164, 163), 90: (228, 227), 100: (228, 227)}
REGISTERS, THREADS, PROGRAMS = 65536, 2048, 32
#: Operators with Triton kernels.
TRITON = [name for name, it in OPERATORS.items() if it.proof and any(row.name == "triton" for row in it.backends)]
#: nvcc's names of the architectures that the CUDA C++ kernels are built for.
NVCC = {80: "80", 90: "90a"}
#: Options of the compiler, which are among the constants of a launch.
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class Case(NamedTuple):
    """One call of an operator, with a gradient: the one by which its backends prove themselves, of so many channels."""

    operator: str
    arch: int
    dtype: str
    channels: int
    facts: dict[str, object]

    def run(self) -> None:
        call = Call(self.operator, "meta", DTYPES[self.dtype], (self.channels,), tuple(self.facts.items()))
        OPERATORS[self.operator].proof.trial(call, True)("triton")

    def __str__(self) -> str:
        facts = " ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.operator:<21}{self.dtype:<9} C {self.channels:<5}{facts:<36}"


class Launch(NamedTuple):
    kernel: object
    arguments: tuple
    constants: dict


@contextmanager
def recorded(arch: int) -> Iterator[list[Launch]]:
    """List the launches of the block as they would be made on this architecture, instead of making them."""
    launches = []

    def record(kernel, grid, *arguments, **constants):
        launches.append(Launch(kernel, arguments, constants))

    with launch.overridden(run=record, architecture=arch):
        yield launches


def launches_of(case: Case) -> list[Launch]:
    """Return the launches of forward and backward."""
    with recorded(case.arch) as launches:
        case.run()
    return launches


def compiled(launched: Launch, arch: int):
    """Compile the kernel of a launch for an architecture, specialised as Triton's own launch would."""
    kernel, arguments, constants = launched
    options = {"enable_fp_fusion": True} | {name: constants[name] for name in OPTIONS if name in constants}
    values = {name: value for name, value in constants.items() if name not in options}
    signature = dict.fromkeys(values, "constexpr")
    constexprs = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    attributes = {}

    def describe(path: tuple, name: str, value):
        if isinstance(value, tuple):
            return tuple(describe((*path, i), name, v) for i, v in enumerate(value))
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return "*" + {"bfloat16": "bf16", "int64": "i64"}.get(
                dtype := str(value.dtype)[6:], dtype.replace("float", "fp")
            )
        if isinstance(value, float):
            return "fp32"
        if value == 1 and name not in launch.FRAME_SIZES:
            constexprs[path] = 1
            return "constexpr"
        if value % 16 == 0 and name not in launch.FRAME_SIZES:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    for index, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        signature[name] = describe((index,), name, value)
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def examine(launched: Launch, arch: int) -> dict:
    """Return registers, spills, shared memory, occupancy and instructions of a launch."""
    binary = compiled(launched, arch)
    usage, code = machine_code(binary.asm["cubin"])
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{ )?(?:@!?U?PT?\d* )?([A-Z0-9_.]+)", code, re.M)
    threads = 32 * launched.constants["num_warps"]
    shared = binary.metadata.shared
    fits = [
        REGISTERS // (-(-registers // 8) * 8 * threads),
        SHARED[arch][0] * 1024 // (shared + 1024),
        THREADS // threads,
        PROGRAMS,
    ]
    return {
        "registers": registers,
        "spilled": stack if any(op.startswith(("STL", "LDL")) for op in opcodes) else 0,
        "shared": shared,
        "programs": min(fits) if shared <= SHARED[arch][1] * 1024 else 0,
        "tensor_core": sum(op.startswith(("HGMMA", "HMMA", "DMMA", "UTCHMMA", "UTCQMMA")) for op in opcodes),
        "fused": binary.asm["ptx"].count("fma.rn.f"),
        "instructions": len(opcodes),
    }


def machine_code(cubin: bytes) -> tuple[str, str]:
    """Return what the assembler reserved, and the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        outputs = [
            subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        ]
    return tuple(outputs)


def rows(cases: list[Case]) -> Iterator[dict]:
    """Yield one row for every kernel of every case; a kernel that several cases share is compiled once."""
    seen = set()
    for case in tqdm(cases, desc="compiling", disable=None):
        for launched in launches_of(case):
            name = launched.kernel.fn.__name__
            identity = (case.arch, name, str(launched.constants), str(described_types(launched.arguments)))
            if identity in seen:
                continue
            seen.add(identity)
            config = {key: launched.constants[key] for key in configuration_names(launched)}
            row = {"triton": triton.__version__, **case._asdict(), "case": str(case), "kernel": name, "config": config}
            try:
                yield row | examine(launched, case.arch)
            except Exception as error:  # a failed compilation is a row of the report
                yield row | {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:100]}"}


def configuration_names(launched: Launch) -> list[str]:
    tiles = ("TILE_H", "TILE_W", "TILE", "TILE_Q", "TILE_P", "TOKENS")
    names = (*tiles, "ROWS", "BLOCK_K", "BLOCK_C", "KEEP", "num_warps", "num_stages")
    return [name for name in names if name in launched.constants]


def described_types(value):
    if isinstance(value, tuple):
        return tuple(described_types(v) for v in value)
    return value.dtype if isinstance(value, torch.Tensor) else type(value)


def as_text(row: dict) -> str:
    config = " ".join(f"{key.removeprefix('num_')} {value}" for key, value in row["config"].items())
    head = f"sm_{row['arch']:<4}{row['kernel']:<26}{row['case']}"
    if "error" in row:
        return f"{head}{config}: {row['error']}"
    return (
        f"{head}{row['registers']:4} registers  {row['spilled']:5} B spilled  {row['shared'] / 1024:6.1f} KiB shared  "
        f"{row['programs']:2} an SM  {row['tensor_core']:4} tensor-core of {row['instructions']:5} instructions  {config}"
    )


def facts(text: str) -> dict[str, object]:
    """Return the facts of a call from text such as "teachers=2,reduction=none"."""
    if not re.fullmatch(r"\w+=\w+(,\w+=\w+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE,NAME=VALUE")
    pairs = (pair.split("=") for pair in text.split(","))
    words = {"True": True, "False": False, "None": None}
    return {name: int(value) if value.isdecimal() else words.get(value, value) for name, value in pairs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=list(SHARED), choices=SHARED, help="80, 90, 100")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], choices=DTYPES)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 256, 768])
    parser.add_argument("--operator", nargs="+", default=[*TRITON, "cuda"], choices=[*TRITON, "cuda"])
    parser.add_argument(
        "--facts", nargs="+", type=facts, metavar="NAME=VALUE,...",
        help="of each call, such as teachers=2,window=15; default: all variants by which a backend proves itself",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    arguments = parser.parse_args()
    cases = []
    for operator in filter("cuda".__ne__, arguments.operator):
        variants = OPERATORS[operator].proof.variants
        known = sorted({name for variant in variants for name in variant})
        if unknown := sorted({name for variant in arguments.facts or () for name in variant} - set(known)):
            parser.error(f"{operator} has no fact {unknown[0]!r}; it has {', '.join(known)}")
        shared = (arguments.arch, arguments.dtype, arguments.channels, arguments.facts or variants)
        cases += [Case(operator, *case) for case in itertools.product(*shared)]
    for row in rows(cases):
        print(json.dumps(row) if arguments.json else as_text(row), flush=True)
    if "cuda" in arguments.operator and cuda_kernel_report.nvcc() is None:
        print("the CUDA C++ kernels are left out: there is no nvcc here", file=sys.stderr)
    elif "cuda" in arguments.operator:
        for arch in filter(NVCC.get, arguments.arch):
            for row in cuda_kernel_report.rows(NVCC[arch], SHARED[arch][0]):
                print(json.dumps(row) if arguments.json else cuda_kernel_report.as_text(row), flush=True)
    return 0
