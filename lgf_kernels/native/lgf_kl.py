"""Launches the fused Local Gram Flow loss of the C++ modules: one pass a direction, then the reduction."""

import torch
from torch import Tensor

from ..numerics import (
    accumulate_dtype,
    empty_residual,
    last_dimension_contiguous,
    lgf_pairs_shape,
    reduce_tokens,
    token_scale,
)
from ..options import LgfOptions
from . import described, module
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
            num_threads=torch.get_num_threads(),
        )
    return reduce_tokens(values.mean(0), token_weight, options.reduction), residual


def backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    scale = token_scale(grad_loss, token_weight, options.reduction, lgf_pairs_shape(student))
    scale = (scale / len(options.directions)).contiguous()
    return features_gradient(student, dict(zip(options.directions, residual, strict=True)), scale, options)
