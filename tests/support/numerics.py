"""Inputs of losses, and comparisons of their values and gradients with the oracle's."""

import os

import torch

from lgf_kernels.core.registry import names_of_able


def backends_of(operator, device_type="cpu"):
    """Return the backends that run an operator on this machine, without the oracle."""
    return [name for name in names_of_able(operator, device_type) if name != "reference"]


def features(*shape, dtype=torch.float32, requires_grad=False):
    """Return random features, drawn in float64 so that the numbers do not depend on the type."""
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


def value_and_gradient(loss, student, *arguments, upstream=None, **options):
    """Return the loss, and its gradient with respect to a new leaf with the student's values and strides."""
    leaf = student.detach().requires_grad_()
    value = loss(leaf, *arguments, **options)
    value.backward(torch.ones_like(value) if upstream is None else upstream.to(value.dtype))
    return value.detach(), leaf.grad


def rounding(dtype, backend):
    """Return the largest relative error of a gradient that is rounded to half precision."""
    if dtype == torch.bfloat16:
        # Triton's interpreter rounds bfloat16 towards 0; GPUs round to nearest.
        return 8e-3 if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1" else 4e-3
    return 5e-4


def double(value):
    """Return a tensor, or the tensors of a list, in float64."""
    if isinstance(value, torch.Tensor):
        return value.double()
    return [double(v) for v in value] if isinstance(value, list) else value


def relative_error(value, truth):
    """Return the norm of the error over the norm of the truth, in float64."""
    value, truth = value.double(), truth.double()
    return (torch.linalg.vector_norm(value - truth) / torch.linalg.vector_norm(truth)).item()


def assert_close(value, truth, tolerance, absolute=0.0):
    """Assert that the error's norm is at most `tolerance` of the truth's, or every element's at most `absolute`."""
    assert value.shape == truth.shape
    if (value.double() - truth).abs().max() <= absolute:
        return
    error = relative_error(value, truth)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def against_reference(loss, student, *others, backend, value=1e-5, gradient=1e-5, absolute=0.0, **options):
    """Compare a loss and its gradient with the oracle's in float64 on the same inputs.

    `value` and `gradient` are the largest relative errors of the two, `absolute` is an error of both that is always allowed.
    """
    ours = value_and_gradient(loss, student, *others, backend=backend, **options)
    truth = value_and_gradient(loss, student.double(), *map(double, others), backend="reference", **options)
    assert ours[0].dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == student.dtype
    assert_close(ours[0], truth[0], value, absolute)
    assert_close(ours[1], truth[1], gradient, absolute)
