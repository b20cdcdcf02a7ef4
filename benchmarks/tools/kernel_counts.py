"""Work of the kernels in half precision, and the least time that a GPU of given ceilings needs for it.

  python benchmarks/tools/kernel_counts.py                                  shapes of all families
  python benchmarks/tools/kernel_counts.py gram_flow 1 49 64 64 256 2       a shape of yours; 0 teachers: two by cached logits
  python benchmarks/tools/kernel_counts.py token_relation 1 24 150 768 768
  python benchmarks/tools/kernel_counts.py --l2 5.5 --json                  other ceilings, one JSON object a line

Nothing runs, and a measurement beats every number here. A family is counted if it has a file in `benchmarks/tools/counted/`:
the class of its shapes, those shown by default, and functions (shape, GPU) -> the launches of one call, Triton's and CUDA C++'s.

Counted for each kernel: multiply-adds of the tensor cores (what the tiles multiply, wanted or not), bytes from L2 to the
SMs, bytes that pass through shared memory (features and windows staged, and operands read), bytes of device memory,
instructions and blocks. An estimate is the largest of

  tensor        multiply-adds at the dense rate, or at the share of it that mma.sync reaches on Hopper
  L2            all bytes at the common rate, or those of the busiest SM at what one SM takes
  shared        bytes of the busiest SM, at 128 bytes a clock
  memory        all bytes at the copy rate
  instructions  those of the busiest SM, at one a clock for each of its four schedulers: real code issues fewer

and a round of waits for memory for each round of blocks where an SM holds one block, so that nothing hides them. Not
counted: launches and the host. Instructions are those of the compiled loops (ISSUED) times how often they run, accurate
to some ten percent; those of Triton's kernels of token relations are not counted.

Ceilings: copy and dense rates were measured on an H200; that of L2 is an assumption, and so is the share of mma.sync.
"""

import here  # noqa: F401  # isort: skip

import argparse
import importlib
import importlib.util
import json
import sys
from types import ModuleType

from counted.work import DEFAULTS, Ceilings, Work, ceilings

import lgf_kernels  # noqa: F401  # whose families fill the table of operators
from lgf_kernels.core.registry import families


def counted_families() -> dict[str, ModuleType]:
    """Return the counts of each family of operators that has some, by its name."""
    names = [name for name in families() if importlib.util.find_spec(f"counted.{name}")]
    return {name: importlib.import_module(f"counted.{name}") for name in names}


def row(shape: tuple, work: Work, gpu: Ceilings) -> dict:
    estimate, limit = work.estimate(gpu)
    resources = {name: round(seconds * 1e6, 1) for name, seconds in work.seconds(gpu).items()}
    return {
        "shape": str(shape),
        **work._asdict(),
        "microseconds": resources,
        "estimate": estimate * 1e6,
        "limit": limit,
    }


def as_text(row: dict) -> str:
    us = row["microseconds"]
    return (
        f"  {row['kernel']:<42}{row['blocks']:6} blocks {row['blocks_per_sm']} an SM"
        f"{(row['mma'] + row['wgmma']) / 1e9:8.1f} G MAC{row['l2'] / 1e6:8.0f} MB L2{row['shared'] / 1e6:8.0f} MB shared"
        f"{row['memory'] / 1e6:7.0f} MB memory{row['instructions'] / 1e6:7.0f} M instructions   us: "
        + " ".join(f"{name} {us[name]:.0f}" for name in us)
        + f" -> {row['estimate']:.0f}, {row['limit']}"
    )


def parser(counted: dict[str, ModuleType]) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = "; ".join(f"{name}: {' '.join(file.Shape._fields)}" for name, file in counted.items())
    result.add_argument("family", nargs="?", choices=counted, help="this family alone")
    result.add_argument("sizes", type=int, nargs="*", metavar="SIZE", help=f"this shape alone. {sizes}")
    for name, (value, unit) in DEFAULTS.items():
        result.add_argument(f"--{name}", type=type(value), default=value, help=f"{unit} (default: {value})")
    result.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    return result


def main() -> int:
    counted = counted_families()
    given = parser(counted).parse_args()
    gpu = ceilings(*(getattr(given, name.replace("-", "_")) for name in DEFAULTS))
    for name in [given.family] if given.family else counted:
        fields = counted[name].Shape._fields
        if given.sizes and len(given.sizes) != len(fields):
            parser(counted).error(f"{name} takes {len(fields)} sizes, {' '.join(fields)}; got {len(given.sizes)}")
        for shape in [counted[name].Shape(*given.sizes)] if given.sizes else counted[name].SHAPES:
            show(shape, counted[name], gpu, given.json)
    return 0


def show(shape: tuple, family: ModuleType, gpu: Ceilings, as_json: bool) -> None:
    """Print a row for each kernel, and the sum for each kind of them."""
    if not as_json:
        print(shape)
    for kernels in (*family.KERNELS, *getattr(family, "CONSIDERED", ())):
        rows = [row(shape, work, gpu) for work in kernels(shape, gpu)]
        for each in rows:
            print(json.dumps(each) if as_json else as_text(each))
        if not as_json and kernels in family.KERNELS:
            print(f"    {len(rows)} kernels, {sum(each['estimate'] for each in rows):.0f} us")


if __name__ == "__main__":
    sys.exit(main())
