"""Parts that the tests on a GPU share: backends, types, tolerances, and the comparison with the oracle on the same device."""

import pytest
import torch

from support.numerics import assert_close, backends_of, double, value_and_gradient

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def backends(operator: str):
    """Return the parameter `backend`, of all that run an operator on a GPU."""
    return pytest.mark.parametrize("backend", backends_of(operator, "cuda"))


def against_reference(loss, student, others, backend, close=assert_close, value=1e-5, gradient=None, **options):
    """Compare a loss and its gradient.

    `close` compares the gradients; `value` and `gradient` are the largest errors, the latter by default its type's.
    """
    ours = value_and_gradient(loss, student, others, backend=backend, **options)
    truth = value_and_gradient(loss, student.double(), double(others), backend="reference", **options)
    assert_close(ours[0], truth[0], 1e-12 if student.dtype == torch.float64 else value)
    close(ours[1], truth[1], gradient or TOLERANCE[student.dtype])
