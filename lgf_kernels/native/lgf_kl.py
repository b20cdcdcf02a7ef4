"""Launches the fused Local Gram Flow loss of the C++ modules: one pass a direction, then the reduction."""

import torch
from torch import Tensor

from ..numerics import (
    accumulate_dtype,
    last_dimension_contiguous,
    lgf_pairs_shape,
    reduce_tokens,
    token_scale,
)
from ..options import LgfOptions
from . import (
    described,
    dtype_name,
    execution,
    module,
    norms_workspace,
    residual_dtype,
    scale_as_taken,
    takes_streams,
)
from .local_gram_flow import features_gradient


def forward(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and for backward the residual d KL_i / d zS, (directions, B, T-1, H, W, K*K), if needed."""
    student = last_dimension_contiguous(student)
    teachers = [last_dimension_contiguous(teacher) for teacher in teachers]
    residual = empty_residual(student, options, needs_grad)
    shape = (len(options.directions), *lgf_pairs_shape(student))
    values = student.new_empty(shape, dtype=accumulate_dtype(student))
    workspace = norms_workspace([student] if from_logits else [*teachers, student], options)
    typed = {"g_dtype": dtype_name(residual)} if takes_streams(student) else {}
    with torch.cuda.device_of(student):
        for index, direction in enumerate(options.directions):
            module(student).lgf_kl_forward(
                described(student),
                [described(teacher) for teacher in teachers],
                teacher_weights,
                tuple(student.shape[:4]),
                values[index].data_ptr(),
                residual[index].data_ptr() if needs_grad else None,
                window=options.window,
                temperature=options.temperature,
                similarity=options.similarity,
                boundary=options.boundary,
                divergence=options.divergence,
                backward=direction == "backward",
                from_logits=from_logits,
                **typed,
                **execution(student, workspace),
            )
    values = values[0] if len(values) == 1 else values.mean(0)
    return reduce_tokens(values, token_weight, options.reduction), residual


def backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    if len(options.directions) > 1:
        grad_loss = grad_loss / len(options.directions)
    scale = token_scale(grad_loss, token_weight, options.reduction, lgf_pairs_shape(student))
    gradients = dict(zip(options.directions, residual, strict=True))
    return features_gradient(student, gradients, scale_as_taken(student, scale), options)


def empty_residual(student: Tensor, options: LgfOptions, needs_grad: bool) -> Tensor:
    """Room for d KL_i / d zS, (directions, B, T-1, H, W, K*K): what a forward keeps for its backward. Empty if it need not."""
    shape = (len(options.directions), *lgf_pairs_shape(student), options.window**2) if needs_grad else (0,)
    return student.new_empty(shape, dtype=residual_dtype(student))
