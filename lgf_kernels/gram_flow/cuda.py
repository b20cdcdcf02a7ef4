"""Launches the fused Local Gram Flow loss of the C++ modules: one pass a direction, then the reduction."""

import math

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
from . import address, described, dtype_name, empty_norms, execution, module, takes_streams, window_row
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
    """The loss, and for backward the residual (`Residual`), if needed."""
    student = last_dimension_contiguous(student)
    teachers = [last_dimension_contiguous(teacher) for teacher in teachers]
    residual = empty_residual(student, options, needs_grad)
    kept = Residual(residual, student, options) if needs_grad else None
    shape = (len(options.directions), *lgf_pairs_shape(student))
    values = student.new_empty(shape, dtype=accumulate_dtype(student))
    norms = kept.norms if needs_grad else empty_norms(student, options)
    workspace = None if from_logits else empty_norms(student, options, len(teachers))
    typed = {"g_dtype": dtype_name(kept.slots if needs_grad else values)}
    gpu = {**typed, "norms": address(norms), "workspace": address(workspace)} if takes_streams(student) else {}
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
                **gpu,
                **execution(student),
            )
    values = values[0] if len(values) == 1 else values.mean(0)
    return reduce_tokens(values, token_weight, options.reduction), residual


def backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    kept = Residual(residual, student, options)
    gradients = dict(zip(options.directions, kept.slots, strict=True))
    shape = lgf_pairs_shape(student)
    factor = 1 / len(options.directions)
    if takes_streams(student) and token_weight is None and options.reduction != "none":
        if options.reduction == "mean":
            factor /= torch.Size(shape).numel()
        return features_gradient(student, gradients, options, kept.norms, scale=grad_loss, factor=factor)
    if factor < 1:
        grad_loss = grad_loss * factor
    scales = token_scale(grad_loss, token_weight, options.reduction, shape).contiguous()
    return features_gradient(student, gradients, options, kept.norms, scales=scales)


class Residual:
    """What a forward keeps for its backward, in one buffer of bytes.

    slots   d KL_i / d zS (directions, B, T-1, H, W, K * row), with rows as `window_row` has them. On GPUs in bfloat16 for a
            bfloat16 student, whose own gradient is no finer; otherwise in the accumulation type
    norms   the student's reciprocal norms (1, B, T, H, W), or None where none are kept (`empty_norms`)
    """

    def __init__(self, residual: Tensor, student: Tensor, options: LgfOptions):
        slots_bytes, norms_bytes = self.sizes(student, options)
        shape = (
            len(options.directions),
            *lgf_pairs_shape(student),
            options.window * window_row(student, options.window),
        )
        self.slots = residual[:slots_bytes].view(self.slots_dtype(student)).view(shape)
        norms = residual[slots_bytes:].view(accumulate_dtype(student))
        self.norms = norms.view(1, *student.shape[:4]) if norms_bytes else None

    @staticmethod
    def slots_dtype(student: Tensor) -> torch.dtype:
        half = takes_streams(student) and student.dtype == torch.bfloat16
        return torch.bfloat16 if half else accumulate_dtype(student)

    @classmethod
    def sizes(cls, student: Tensor, options: LgfOptions) -> tuple[int, int]:
        """Bytes of the two parts. The slots come first: K (K + 1) is even, which aligns the norms."""
        tokens = len(options.directions) * math.prod(lgf_pairs_shape(student))  # of sizes that may be symbols
        slots = tokens * options.window * window_row(student, options.window) * cls.slots_dtype(student).itemsize
        keeps_norms = takes_streams(student) and options.similarity == "cosine"
        return slots, math.prod(student.shape[:4]) * accumulate_dtype(student).itemsize if keeps_norms else 0


def empty_residual(student: Tensor, options: LgfOptions, needs_grad: bool) -> Tensor:
    """Room for a `Residual`; empty if no gradient is needed."""
    return student.new_empty((sum(Residual.sizes(student, options)) if needs_grad else 0,), dtype=torch.uint8)
