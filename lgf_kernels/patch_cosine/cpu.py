"""Launchers of the C++ module for CPU tensors, which allocate the outputs and pass addresses."""

import torch
from torch import Tensor

from ..core.native import address, described, dtype_name, module, threads
from ..core.numerics import last_dimension_contiguous
from ..core.registry import Implementation
from .folding import Tokens, empty_residual, empty_tokens


def forward(
    student: Tensor, teachers: list[Tensor], shares: list[float], frame_weight: Tensor | None, needs_grad: bool
) -> Tokens:
    """Return the distances, the reciprocal norms and, if `needs_grad`, the gradient without them (`folding.Tokens`)."""
    student, *teachers = map(last_dimension_contiguous, (student, *teachers))
    tokens = empty_tokens(student, needs_grad)
    module(student).patch_cosine(
        described(student),
        [described(teacher) for teacher in teachers],
        shares,
        tuple(student.shape[:4]),
        teachers[0].shape[1],
        address(frame_weight),
        tokens.distance.data_ptr(),
        tokens.reciprocal.data_ptr(),
        tokens.gradient.data_ptr() if needs_grad else None,
        **threads(),
    )
    return tokens


def backward(grad_loss: Tensor, gradient: Tensor, factor: Tensor) -> Tensor:
    """Return the gradient of the student, rounded once more: G times the factors times the upstream gradient."""
    scale, out = (grad_loss * factor).contiguous(), torch.empty_like(gradient)
    module(gradient).patch_cosine_backward(
        gradient.data_ptr(),
        dtype_name(gradient),
        factor.numel(),
        gradient.shape[-1],
        scale.data_ptr(),
        out.data_ptr(),
        **threads(),
    )
    return out


patch_cosine = Implementation(forward, backward, empty_residual)
