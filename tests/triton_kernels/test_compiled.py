"""The kernels compiled ahead of time for GPUs that need not be here: what the compiler made of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
OLD_TRITON = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def json_lines(script, *arguments):
    """What a script prints, run by a process of its own: in this one the kernels are interpreted."""
    cache = {
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton")
    }  # its default is in the home, where one may not always write
    environment = cache | {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert "fusion" not in process.stderr, "left to Triton, whose choice differs between versions"
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert rows
    return rows


def report(*arguments):
    return json_lines("benchmarks/kernel_report.py", "--json", *arguments)


def describe(row):
    return json.dumps(row, indent=1)


def check(row, spills=False):
    # The compiler of Triton 3.6 parks a few registers outside the loops; newer ones need not.
    assert spills or row["spilled"] <= (128 if OLD_TRITON else 0), describe(row)
    assert row["programs"] >= 1, f"more shared memory than there is: {describe(row)}"
    if "norms" not in row["kernel"] and "project" not in row["kernel"]:
        assert row["tensor_core"] > 0, describe(row)


@pytest.mark.slow
def test_hopper_in_bfloat16():
    selection = ("--operator", "lgf_kl", "--channels", 64, 256, 768, "--teachers", 1, 2, 0)
    rows = report("--arch", 90, "--dtype", "bfloat16", *selection)
    assert {row["kernel"] for row in rows} == {"lgf_reciprocal_norms", "lgf_kl_forward", "lgf_backward"}
    for row in rows:
        assert "error" not in row, describe(row)
        check(row)


@pytest.mark.slow
def test_token_relations_on_hopper_in_bfloat16():
    selection = ("--operator", "token_relation", "--channels", 256, "--teacher-channels", 256, 768)
    rows = report("--arch", 90, "--dtype", "bfloat16", *selection)
    kernels = {"lgf_reciprocal_norms"} | {f"lgf_relation_{name}" for name in ("distances", "products", "project")}
    assert {row["kernel"] for row in rows} == kernels
    for row in rows:
        assert "error" not in row, describe(row)
        check(row)
        # Student and teacher would be rounded differently, and equal ones have differences with a sign.
        assert row["kernel"] != "lgf_relation_distances" or row["fused"] == 0, describe(row)


@pytest.mark.slow
@pytest.mark.parametrize("arch, dtype", [(80, "bfloat16"), (90, "float32"), (100, "bfloat16")])
def test_other_architectures_and_types(arch, dtype):
    operators = ("--operator", "lgf_kl", "token_relation")
    selection = (*operators, "--channels", 256, "--teachers", 2, 0, "--teacher-channels", 768)
    for row in report("--arch", arch, "--dtype", dtype, *selection):
        if OLD_TRITON and arch == 100 and "error" in row:
            continue  # Triton 3.6 cannot compile all of them for Blackwell
        assert "error" not in row, describe(row)
        check(row, spills=row["kernel"].startswith("lgf_relation"))  # those are tuned for Hopper in half precision


@pytest.mark.slow
def test_a_new_resolution_compiles_nothing():
    """Through Triton's own binding of arguments, which the kernel report goes round."""
    first, *others = json_lines("tests/triton_kernels/bind.py")
    assert len(first) == 7
    for later in others:
        assert later == first
