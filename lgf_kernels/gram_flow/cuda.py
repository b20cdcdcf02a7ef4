"""Launchers of the CUDA C++ module, which allocate the outputs and pass addresses."""

import math

import torch
from torch import Tensor

from ..core.native import address, described, dtype_name, module, reciprocal_norms, stream
from ..core.numerics import accumulate_dtype, last_dimension_contiguous, reduce_tokens, token_scale
from ..core.registry import Implementation
from .options import LgfOptions
from .window import pairs_shape


def flow_forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Return the logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    features = last_dimension_contiguous(features)
    logits = features.new_empty((*pairs_shape(features), options.window**2), dtype=accumulate_dtype(features))
    norms = empty_norms(features, options)
    with torch.cuda.device_of(features):
        module(features).local_gram_flow(
            described(features),
            tuple(features.shape[:4]),
            logits.data_ptr(),
            window=options.window,
            similarity=options.similarity,
            backward=options.direction == "backward",
            norms=address(norms),
            **stream(features),
        )
    return logits


def flow_backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    features = last_dimension_contiguous(features)
    rows = grad_logits.to(accumulate_dtype(features)).unflatten(-1, (options.window, options.window))
    padded = rows.new_empty((*rows.shape[:-1], window_row(options.window)))
    padded[..., :-1] = rows
    norms = empty_norms(features, options)
    if norms is not None:
        with torch.cuda.device_of(features):
            reciprocal_norms(features, norms)
    return features_gradient(features, {options.direction: padded}, options, norms)


def loss_forward(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the residual (`Residual`)."""
    student = last_dimension_contiguous(student)
    teachers = [last_dimension_contiguous(teacher) for teacher in teachers]
    residual = empty_residual(student, options, needs_grad)
    kept = Residual(residual, student, options) if needs_grad else None
    values = student.new_empty((len(options.directions), *pairs_shape(student)), dtype=accumulate_dtype(student))
    norms = kept.norms if needs_grad else empty_norms(student, options)
    workspace = None if from_logits else empty_norms(student, options, len(teachers))
    token_weight = token_weight if token_weight is None else token_weight.contiguous()
    with torch.cuda.device_of(student):
        for index, direction in enumerate(options.directions):
            module(student).lgf_kl_forward(
                described(student),
                [described(teacher) for teacher in teachers],
                teacher_weights,
                tuple(student.shape[:4]),
                values[index].data_ptr(),
                kept.slots[index].data_ptr() if needs_grad else None,
                window=options.window,
                temperature=options.temperature,
                similarity=options.similarity,
                boundary=options.boundary,
                divergence=options.divergence,
                backward=direction == "backward",
                from_logits=from_logits,
                token_weight=address(token_weight),
                g_dtype=dtype_name(kept.slots if needs_grad else values),
                norms=address(norms),
                workspace=address(workspace),
                **stream(student),
            )
    values = values[0] if len(values) == 1 else values.mean(0)
    return reduce_tokens(values, token_weight, options.reduction), residual


def loss_backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    kept = Residual(residual, student, options)
    gradients = dict(zip(options.directions, kept.slots, strict=True))
    shape = pairs_shape(student)
    factor = 1 / len(options.directions)
    if token_weight is None and options.reduction != "none":
        if options.reduction == "mean":
            factor /= torch.Size(shape).numel()
        return features_gradient(student, gradients, options, kept.norms, scale=grad_loss, factor=factor)
    if factor < 1:
        grad_loss = grad_loss * factor
    scales = token_scale(grad_loss, token_weight, options.reduction, shape).contiguous()
    return features_gradient(
        student, gradients, options, kept.norms, scales=scales, skip_zeros=token_weight is not None
    )


def features_gradient(
    features: Tensor,
    grad_logits: dict[str, Tensor],
    options: LgfOptions,
    norms: Tensor | None,
    scales: Tensor | None = None,
    skip_zeros: bool = False,
    scale: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Return the gradient of `factor * scale * sum scales[i] * grad_logits[direction][i, d] * z[i, d]`.

    The sum is over the directions given. `grad_logits[direction]` (B, T-1, H, W, K, row), with
    `window_row(K)` numbers a row, is contiguous, in the accumulation type or that of a residual. So
    are `scales` (B, T-1, H, W) and the single number `scale`. `norms` are the features' reciprocal
    norms, or None where `empty_norms` returns None. `skip_zeros`: tiles of tokens of scale 0 give nothing, even where
    `grad_logits` or the features are NaN.
    """
    features = last_dimension_contiguous(features)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    directions = {direction: (g.data_ptr(), dtype_name(g)) for direction, g in grad_logits.items()}
    with torch.cuda.device_of(features):
        module(features).gram_backward(
            described(features),
            tuple(features.shape[:4]),
            directions.get("forward"),
            directions.get("backward"),
            gradient.data_ptr(),
            window=options.window,
            similarity=options.similarity,
            scales=address(scales),
            skip_zeros=skip_zeros,
            scale=address(scale),
            factor=factor,
            norms=address(norms),
            **stream(features),
        )
    return gradient


def window_row(window: int) -> int:
    """Return the row length of a window in a gradient by the logits (B, T-1, H, W, K * row).

    The last number of each row is unused, which aligns the rows of a window of 7.
    """
    return window + 1


def empty_norms(features: Tensor, options: LgfOptions, count: int = 1) -> Tensor | None:
    """Allocate reciprocal norms (count, B, T, H, W) for cosine similarity; return None for others."""
    if options.similarity != "cosine":
        return None
    return features.new_empty((count, *features.shape[:4]), dtype=accumulate_dtype(features))


class Residual:
    """The tensors that a forward keeps for its backward, in one buffer of bytes.

    slots   d KL_i / d zS (directions, B, T-1, H, W, K * row), with rows of `window_row(K)` numbers; in bfloat16 for a
            bfloat16 student, whose own gradient is no finer, otherwise in the accumulation type
    norms   the student's reciprocal norms (1, B, T, H, W), or None without cosine similarity (`empty_norms`)
    """

    def __init__(self, residual: Tensor, student: Tensor, options: LgfOptions):
        slots_bytes, norms_bytes = self.sizes(student, options)
        shape = (len(options.directions), *pairs_shape(student), options.window * window_row(options.window))
        self.slots = residual[:slots_bytes].view(self.slots_dtype(student)).view(shape)
        norms = residual[slots_bytes:].view(accumulate_dtype(student))
        self.norms = norms.view(1, *student.shape[:4]) if norms_bytes else None

    @staticmethod
    def slots_dtype(student: Tensor) -> torch.dtype:
        return torch.bfloat16 if student.dtype == torch.bfloat16 else accumulate_dtype(student)

    @classmethod
    def sizes(cls, student: Tensor, options: LgfOptions) -> tuple[int, int]:
        """Return the bytes of slots and norms.

        The slots come first: K (K + 1) is even, which aligns the norms.
        """
        tokens = len(options.directions) * math.prod(pairs_shape(student))  # sizes may be symbols
        slots = tokens * options.window * window_row(options.window) * cls.slots_dtype(student).itemsize
        keeps_norms = options.similarity == "cosine"
        return slots, math.prod(student.shape[:4]) * accumulate_dtype(student).itemsize if keeps_norms else 0


def empty_residual(student: Tensor, options: LgfOptions, needs_grad: bool) -> Tensor:
    """Allocate the buffer of a `Residual`, empty unless `needs_grad`."""
    return student.new_empty((sum(Residual.sizes(student, options)) if needs_grad else 0,), dtype=torch.uint8)


local_gram_flow = Implementation(flow_forward, flow_backward)
lgf_kl = Implementation(loss_forward, loss_backward, empty_residual)
