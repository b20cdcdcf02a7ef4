"""Launchers of the C++ module for CPU tensors, which allocate the outputs and pass addresses."""

import torch
from torch import Tensor

from ..core.native import address, described, module, threads
from ..core.numerics import accumulate_dtype, last_dimension_contiguous, reduce_tokens, token_scale
from ..core.registry import Implementation
from .options import LgfOptions
from .window import empty_residual, pairs_shape, window_mask


def flow_forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Return the logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    features = last_dimension_contiguous(features)
    logits = features.new_empty((*pairs_shape(features), options.window**2), dtype=accumulate_dtype(features))
    module(features).local_gram_flow(
        described(features),
        tuple(features.shape[:4]),
        logits.data_ptr(),
        window=options.window,
        similarity=options.similarity,
        backward=options.direction == "backward",
        **threads(),
    )
    return logits


def flow_backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    # Logits outside the frame are constants: their gradient is ignored, even NaN.
    inside = window_mask(*features.shape[2:4], options.window, features.device)
    grad_logits = torch.where(inside, grad_logits.to(accumulate_dtype(features)), 0.0).contiguous()
    return features_gradient(features, {options.direction: grad_logits}, options)


def loss_forward(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the residual d KL_i / d zS (`empty_residual`)."""
    student = last_dimension_contiguous(student)
    teachers = [last_dimension_contiguous(teacher) for teacher in teachers]
    residual = empty_residual(student, options, needs_grad)
    values = student.new_empty((len(options.directions), *pairs_shape(student)), dtype=accumulate_dtype(student))
    token_weight = token_weight if token_weight is None else token_weight.contiguous()
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
            token_weight=address(token_weight),
            **threads(),
        )
    values = values[0] if len(values) == 1 else values.mean(0)
    return reduce_tokens(values, token_weight, options.reduction), residual


def loss_backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    if len(options.directions) > 1:
        grad_loss = grad_loss / len(options.directions)
    scales = token_scale(grad_loss, token_weight, options.reduction, pairs_shape(student)).contiguous()
    gradients = dict(zip(options.directions, residual, strict=True))
    return features_gradient(student, gradients, options, scales, skip_zeros=token_weight is not None)


def features_gradient(
    features: Tensor,
    grad_logits: dict[str, Tensor],
    options: LgfOptions,
    scales: Tensor | None = None,
    skip_zeros: bool = False,
) -> Tensor:
    """Return the gradient of `sum scales[i] * grad_logits[direction][i, d] * z[i, d]` over the directions given.

    `grad_logits[direction]` (B, T-1, H, W, K*K) and `scales` (B, T-1, H, W) are contiguous, in the accumulation type.
    `skip_zeros`: image rows of scale 0 give nothing, even where `grad_logits` or the features are NaN.
    """
    features = last_dimension_contiguous(features)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    directions = {direction: (g.data_ptr(), address(scales)) for direction, g in grad_logits.items()}
    module(features).gram_backward(
        described(features),
        tuple(features.shape[:4]),
        directions.get("forward"),
        directions.get("backward"),
        gradient.data_ptr(),
        window=options.window,
        similarity=options.similarity,
        skip_zeros=skip_zeros,
        **threads(),
    )
    return gradient


local_gram_flow = Implementation(flow_forward, flow_backward)
lgf_kl = Implementation(loss_forward, loss_backward, empty_residual)
