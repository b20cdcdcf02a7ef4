"""The kernels compiled ahead of time for GPUs that need not be here: what the compiler made of them."""

import json

import pytest
from support.numerics import json_lines

triton = pytest.importorskip("triton")

OLD_TRITON = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def report(*arguments):
    return json_lines("benchmarks/tools/kernel_report.py", "--json", *arguments)


def describe(row):
    return json.dumps(row, indent=1)


def check(row, spills=False):
    # The compiler of Triton 3.6 parks a few registers outside the loops; newer ones need not.
    assert spills or row["spilled"] <= (128 if OLD_TRITON else 0), describe(row)
    assert row["programs"] >= 1, f"more shared memory than there is: {describe(row)}"
    if "norms" not in row["kernel"] and "project" not in row["kernel"]:
        assert row["tensor_core"] > 0, describe(row)


@pytest.mark.parametrize(
    "channels, teachers", [((256,), (2, 0)), pytest.param((64, 256, 768), (1, 2, 0), marks=pytest.mark.slow)], ids=str
)
def test_hopper_in_bfloat16(channels, teachers):
    """As many teachers as given, 0 for cached logits."""
    selection = ("--operator", "lgf_kl", "--channels", *channels, "--teachers", *teachers)
    rows = report("--arch", 90, "--dtype", "bfloat16", *selection)
    assert {row["kernel"] for row in rows} == {"lgf_reciprocal_norms", "lgf_kl_forward", "lgf_backward"}
    for row in rows:
        assert "error" not in row, describe(row)
        check(row)


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


@pytest.mark.parametrize("teachers", [(2,), pytest.param((2, 0), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("arch, dtype", [(80, "bfloat16"), (90, "float32"), (100, "bfloat16")])
def test_other_architectures_and_types(arch, dtype, teachers):
    operators = ("--operator", "lgf_kl", "token_relation")
    selection = (*operators, "--channels", 256, "--teachers", *teachers, "--teacher-channels", 768)
    for row in report("--arch", arch, "--dtype", dtype, *selection):
        if OLD_TRITON and arch == 100 and "error" in row:
            continue  # Triton 3.6 cannot compile all of them for Blackwell
        assert "error" not in row, describe(row)
        check(row, spills=row["kernel"].startswith("lgf_relation"))  # those are tuned for Hopper in half precision


def test_a_new_resolution_compiles_nothing():
    """Through Triton's own binding of arguments, which the kernel report goes round."""
    first, *others = json_lines("-m", "support.triton_binding")
    assert len(first) == 7
    for later in others:
        assert later == first
