"""The compiled Triton kernel of patch cosine on the model of a GPU (tests/models/ptx), against the oracle."""

import pytest
from models.ptx.results import check, results_of

from .triton_cases import CASES, MORE, ON_HOPPER

pytest.importorskip("triton")


def test_operators_against_the_oracle():
    check(results_of("patch_cosine"), CASES)


@pytest.mark.slow
def test_more_operators_against_the_oracle():
    check(results_of("more", "patch_cosine"), MORE)


@pytest.mark.parametrize(
    "cases, words", [(ON_HOPPER, ["few"]), pytest.param([*CASES, *MORE], [], marks=pytest.mark.slow)]
)
def test_operators_compiled_for_hopper(cases, words):
    check(results_of("sm_90", "patch_cosine", *words), cases)
