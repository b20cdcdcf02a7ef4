"""Support matrix of the README, from the registry: which backends an operator has for which device.

python benchmarks/tools/support_matrix.py              # write it into README.md
python benchmarks/tools/support_matrix.py --print      # show it
"""

import argparse
import re
from pathlib import Path

from lgf_kernels.core.registry import OPERATORS, Operator

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- support matrix: benchmarks/tools/support_matrix.py -->\n", "<!-- end of the support matrix -->\n"
DEVICES = {"CPU": "cpu", "NVIDIA GPU": "cuda", "any other device of torch": "other"}
#: How the README names a backend on a device; not Triton's interpreter on a CPU, nor the reference, which all have.
NAMES = {
    ("native", "cpu"): "C++",
    ("native", "cuda"): "CUDA C++",
    ("triton", "cuda"): "Triton",
    **{("portable", device): "portable" for device in DEVICES.values()},
}


def cell(operator: Operator, device: str) -> str:
    """Return the backends of an operator for a device, in order of preference."""
    rows = [row for row in operator.backends if not row.device_types or device in row.device_types]
    return ", ".join(NAMES[row.name, device] for row in rows if (row.name, device) in NAMES)


def matrix() -> str:
    """Return the table in Markdown."""
    lines = [f"| operator | {' | '.join(DEVICES)} |", "|---" * (len(DEVICES) + 1) + "|"]
    for operator in OPERATORS.values():
        lines.append(f"| `{operator.name}` | {' | '.join(cell(operator, device) for device in DEVICES.values())} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Return a README with the matrix of now between its marks."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", f"{BEGIN}{matrix()}{END}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="show it, and leave the README as it is")
    if parser.parse_args().print:
        print(matrix(), end="")
    else:
        README.write_text(written(README.read_text()))


if __name__ == "__main__":
    main()
