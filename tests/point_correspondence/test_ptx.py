"""The compiled Triton kernels of point correspondence on the model of a GPU (tests/models/ptx), against the oracle."""

import pytest
from models.ptx.results import check, results_of

from .triton_cases import CASES

pytest.importorskip("triton")


def test_operators_against_the_oracle():
    check(results_of("point_correspondence"), CASES)
