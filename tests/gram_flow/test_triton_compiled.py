"""The Triton kernels of Local Gram Flow compiled ahead of time: registers, shared memory, tensor cores."""

import pytest
from support.triton_reports import check, check_all, check_resolutions, report

pytest.importorskip("triton")

ONE, TWO, CACHED = "teachers=1", "teachers=2", "teachers=1,from_logits=True"
WEIGHTED = "teachers=2,token_weight=True"


@pytest.mark.parametrize(
    "channels, teachers",
    [
        ((256,), (TWO, CACHED, WEIGHTED)),
        pytest.param((64, 256, 768), (ONE, TWO, CACHED, WEIGHTED), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_hopper_in_bfloat16(channels, teachers):
    selection = ("--operator", "lgf_kl", "--channels", *channels, "--facts", *teachers)
    rows = report("--arch", 90, "--dtype", "bfloat16", *selection)
    assert {row["kernel"] for row in rows} == {"lgf_reciprocal_norms", "lgf_kl_forward", "lgf_backward"}
    for row in rows:
        check(row)


@pytest.mark.parametrize("teachers", [(TWO, WEIGHTED), pytest.param((TWO, CACHED), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "arch, dtype",
    [
        (80, "float32"),
        (100, "bfloat16"),
        *(pytest.param(*it, marks=pytest.mark.slow) for it in ((80, "bfloat16"), (90, "float32"))),
    ],
)
def test_other_architectures_and_types(arch, dtype, teachers):
    selection = ("--operator", "lgf_kl", "--channels", 256, "--facts", *teachers)
    check_all(report("--arch", arch, "--dtype", dtype, *selection), arch)


def test_a_new_resolution_compiles_nothing():
    check_resolutions("gram_flow", kernels=4)
