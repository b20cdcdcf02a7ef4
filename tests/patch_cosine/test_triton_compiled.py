"""The Triton kernel of patch cosine compiled ahead of time: registers, shared memory, rounded products, resolutions."""

import pytest
from support.triton_reports import check_all, check_resolutions, describe, report

pytest.importorskip("triton")


@pytest.mark.parametrize(
    "arch, dtype, channels",
    [
        (90, "bfloat16", 1024),
        (80, "float32", 256),
        (100, "bfloat16", 1024),
        pytest.param(80, "bfloat16", 1280, marks=pytest.mark.slow),
        pytest.param(90, "float16", 256, marks=pytest.mark.slow),
        pytest.param(90, "float32", 1024, marks=pytest.mark.slow),
        pytest.param(90, "float64", 256, marks=pytest.mark.slow),
    ],
)
def test_no_registers_are_spilled_and_nothing_is_fused(arch, dtype, channels):
    """Fused with the sum over a token's threads, a product would make these differ in what they all write."""
    rows = report("--operator", "patch_cosine", "--arch", arch, "--dtype", dtype, "--channels", channels)
    assert {row["kernel"] for row in rows} == {"lgf_patch_cosine", "lgf_reciprocal_norms"}
    check_all([row | {"tensor_core": 1} for row in rows], arch)  # it multiplies no matrices
    for row in rows:
        assert "error" in row or row["fused"] == 0, describe(row)


def test_a_new_resolution_compiles_nothing():
    check_resolutions("patch_cosine", kernels=2)
