"""The Triton kernels of token relations compiled ahead of time: registers, shared memory, tensor cores, fused products."""

import pytest
from support.triton_reports import check, check_all, check_resolutions, describe, report

pytest.importorskip("triton")

#: A teacher of more channels than the student, with a gradient and without.
WIDE = ("teacher_channels=768", "teacher_channels=768,needs_grad=False")


def test_hopper_in_bfloat16():
    selection = ("--operator", "token_relation", "--channels", 256, "--facts", "teacher_channels=256", *WIDE)
    rows = report("--arch", 90, "--dtype", "bfloat16", *selection)
    kernels = {"lgf_reciprocal_norms"} | {f"lgf_relation_{name}" for name in ("distances", "products", "project")}
    assert {row["kernel"] for row in rows} == kernels
    for row in rows:
        check(row)
        # Student and teacher would be rounded differently, and equal ones have differences with a sign.
        assert row["kernel"] != "lgf_relation_distances" or row["fused"] == 0, describe(row)


@pytest.mark.parametrize(
    "arch, dtype",
    [
        (80, "float32"),
        (100, "bfloat16"),
        *(pytest.param(*it, marks=pytest.mark.slow) for it in ((80, "bfloat16"), (90, "float32"))),
    ],
)
def test_other_architectures_and_types(arch, dtype):
    selection = ("--operator", "token_relation", "--channels", 256, "--facts", *WIDE)
    # The tables are tuned for Hopper in half precision: elsewhere registers may spill.
    check_all(report("--arch", arch, "--dtype", dtype, *selection), arch, spilling=("lgf_relation",))


def test_a_new_resolution_compiles_nothing():
    check_resolutions("token_relation", kernels=4)
