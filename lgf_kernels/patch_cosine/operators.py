"""The operator `lgf::patch_cosine`, and the backends that run it.

The forward computes the gradient, the backward scales it.
"""

import torch
from torch import Tensor

from ..core import checks, native
from ..core.autograd import Differentiable, Pass, check_where_readable, needs_gradient, without_autocast
from ..core.gpu import triton_backend
from ..core.numerics import accumulate_dtype, relative_weight
from ..core.registry import PORTABLE, REFERENCE, Backend, Proof, implementation, register
from . import reference
from .folding import divided_by_sum, reduced
from .trial import VARIANTS, trial

CPU = Backend("native", "cpu", native.unsupported_reason, device_types=("cpu",))
register(
    "patch_cosine",
    __package__,
    CPU,
    triton_backend("triton_kernels"),
    PORTABLE,
    REFERENCE,
    proof=Proof(trial, VARIANTS),
)


def patch_cosine(
    student: Tensor,
    teachers: list[Tensor],
    shares: list[float],
    frame_weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    backend: str,
) -> Tensor:
    """Return the loss of student (B, F, H, W, C), teachers (B, K, H, W, C_m) and weights (F, K) and (B, F, H, W)."""
    if backend == "reference":
        check_where_readable(_check_weights, frame_weight, token_weight)
        token_weight = relative_weight(token_weight, accumulate_dtype(student), reduction)
        with without_autocast(student):
            return reference.patch_cosine(student, teachers, shares, frame_weight, token_weight, reduction)
    needs_grad = needs_gradient(student)
    return _loss(student, teachers, shares, frame_weight, token_weight, reduction, needs_grad, backend)[0]


def _check_weights(frame_weight: Tensor | None, token_weight: Tensor | None) -> None:
    for name, weight in (("frame_weight", frame_weight), ("token_weight", token_weight)):
        if weight is not None:
            checks.nonnegative("patch_cosine_loss", name, weight)


def _forward(
    student: Tensor,
    teachers: list[Tensor],
    shares: list[float],
    frame_weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_weights(frame_weight, token_weight)
    token_weight = relative_weight(token_weight, accumulate_dtype(student), reduction)
    with without_autocast(student):
        total = None
        if frame_weight is not None:
            frame_weight, total = divided_by_sum(frame_weight)
        run = implementation("patch_cosine", backend, student.device.type).forward
        tokens = run(student, teachers, shares, frame_weight, needs_grad)
        loss, factor = reduced(tokens, total, token_weight, reduction, needs_grad)
    return loss, tokens.gradient, factor


def _forward_fake(student, teachers, shares, frame_weight, token_weight, reduction, needs_grad, backend):
    shape = student.shape[:-1] if reduction == "none" else ()
    residual = implementation("patch_cosine", backend, student.device.type).empty_residual(student, needs_grad)
    return student.new_empty(shape, dtype=accumulate_dtype(student)), *residual


def _backward(grad_loss: Tensor, gradient: Tensor, factor: Tensor, backend: str) -> Tensor:
    with without_autocast(gradient):
        return implementation("patch_cosine", backend, gradient.device.type).backward(grad_loss, gradient, factor)


def _backward_fake(grad_loss, gradient, factor, backend):
    return torch.empty_like(gradient)


def _save(ctx, inputs, output):
    ctx.backend, ctx.inputs, ctx.no_teacher_gradients = inputs[-1], len(inputs), [None] * len(inputs[1])
    _, gradient, factor = output
    ctx.save_for_backward(gradient, factor)
    ctx.set_materialize_grads(False)


def _gradients(ctx, backward, grad_loss, *grad_residual):
    grad = None if grad_loss is None else backward(grad_loss, *ctx.saved_tensors, ctx.backend)
    return grad, ctx.no_teacher_gradients, *[None] * (ctx.inputs - 2)


_loss = Differentiable(
    "patch_cosine",
    "patch_cosine_loss",
    Pass(_forward, _forward_fake),
    Pass(_backward, _backward_fake),
    _save,
    _gradients,
)
