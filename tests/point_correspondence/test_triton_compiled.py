"""The Triton kernels of point correspondence compiled ahead of time: registers, shared memory, tensor cores."""

import pytest
from support.triton_reports import check_all, check_resolutions, report

pytest.importorskip("triton")

KERNELS = {f"lgf_points_{name}" for name in ("sample", "search", "coefficients", "products", "project", "scatter")}
#: They multiply no matrices.
PLAIN = ("lgf_points_sample", "lgf_points_scatter")


@pytest.mark.parametrize(
    "arch, dtype, channels",
    [
        (90, "bfloat16", 256),
        (80, "float32", 256),
        (100, "bfloat16", 256),
        pytest.param(80, "bfloat16", 256, marks=pytest.mark.slow),
        pytest.param(90, "float32", 256, marks=pytest.mark.slow),
        pytest.param(90, "bfloat16", 768, marks=pytest.mark.slow),
        pytest.param(90, "float16", 256, marks=pytest.mark.slow),
    ],
)
def test_no_registers_are_spilled(arch, dtype, channels):
    rows = report("--operator", "point_correspondence", "--arch", arch, "--dtype", dtype, "--channels", channels)
    assert {row["kernel"] for row in rows} == KERNELS | {"lgf_reciprocal_norms"}
    plain = [row | {"tensor_core": 1} for row in rows if row["kernel"] in PLAIN]
    check_all([row for row in rows if row["kernel"] not in PLAIN] + plain, arch)


def test_a_new_resolution_or_number_of_points_compiles_nothing():
    check_resolutions("point_correspondence", kernels=7)
