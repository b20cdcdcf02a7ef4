"""The compiled Triton kernels of token relations on the model of a GPU (tests/models/ptx), against the oracle."""

import pytest
from models.ptx.results import check, results_of

from .triton_cases import CASES, MORE, ON_HOPPER

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def results():
    return results_of("token_relation")


def test_operators_against_the_oracle(results):
    check(results, CASES)


def test_products_that_must_be_rounded(results):
    """Fused with a difference, equal features have one; in a sum of squares, the threads of a token get different sums."""
    assert results["nothing fused"]["result"] == 0
    assert results["differences fused"]["result"] > 1e-6
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):  # older ones let one thread of them write
        assert "two threads write" in results["norms fused"]["fault"]


@pytest.mark.slow
def test_more_operators_against_the_oracle():
    check(results_of("more", "token_relation"), MORE)


@pytest.mark.parametrize(
    "cases, words", [(ON_HOPPER, ["few"]), pytest.param([*CASES, *MORE], [], marks=pytest.mark.slow)]
)
def test_operators_compiled_for_hopper(cases, words):
    check(results_of("sm_90", "token_relation", *words), cases)
