"""The operator `lgf::token_relation`, and the backends that run it.

The forward computes the gradient, the backward scales it.
"""

import torch
from torch import Tensor

from ..core import checks, native
from ..core.autograd import Differentiable, Pass, check_where_readable, needs_gradient, without_autocast
from ..core.gpu import triton_backend
from ..core.numerics import accumulate_dtype
from ..core.registry import PORTABLE, REFERENCE, Backend, Proof, implementation, register
from . import reference
from .options import RelationOptions
from .trial import VARIANTS, trial

CPU = Backend("native", "cpu", native.unsupported_reason, device_types=("cpu",))
CUDA = Backend(
    "native",
    "cuda",
    native.unsupported_reason,
    device_types=("cuda",),
    verified_on=("cuda",),
    limits=native.CUDA_LIMITS,
)
register(
    "token_relation",
    __package__,
    CPU,
    CUDA,
    triton_backend("triton_kernels"),
    PORTABLE,
    REFERENCE,
    proof=Proof(trial, VARIANTS),
)


def token_relation(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions, backend: str
) -> Tensor:
    if backend == "reference":
        check_where_readable(_check_weight, pair_weight)
        with without_autocast(student):
            return reference.token_relation(student, teacher, pair_weight, options)
    return _relation(student, teacher, pair_weight, *options, needs_gradient(student), backend)[0]


def _check_weight(pair_weight: Tensor) -> None:
    checks.nonnegative("token_relation_loss", "pair_weight", pair_weight)


def _forward(
    student: Tensor,
    teacher: Tensor,
    pair_weight: Tensor,
    margin: float,
    distance: str,
    negatives: str,
    similarity: str,
    reduction: str,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_weight(pair_weight)
    options = RelationOptions(margin, distance, negatives, similarity, reduction)
    with without_autocast(student):
        return implementation("token_relation", backend, student.device.type).forward(
            student, teacher, pair_weight, options, needs_grad
        )


def _forward_fake(
    student, teacher, pair_weight, margin, distance, negatives, similarity, reduction, needs_grad, backend
):
    shape = student.shape[:1] if reduction == "none" else ()
    residual = implementation("token_relation", backend, student.device.type).empty_residual(student, needs_grad)
    return student.new_empty(shape, dtype=accumulate_dtype(student)), residual


def _backward(grad_loss: Tensor, residual: Tensor, reduction: str, dtype: torch.dtype, backend: str) -> Tensor:
    with without_autocast(residual):
        return implementation("token_relation", backend, residual.device.type).backward(
            grad_loss, residual, reduction, dtype
        )


def _backward_fake(grad_loss, residual, reduction, dtype, backend):
    return torch.empty_like(residual, dtype=dtype)


def _save(ctx, inputs, output):
    student, *_, ctx.reduction, _, ctx.backend = inputs
    _, residual = output
    ctx.save_for_backward(residual)
    ctx.dtype = student.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx, backward, grad_loss, grad_residual):
    (residual,) = ctx.saved_tensors
    grad = None
    if grad_loss is not None:
        grad = backward(grad_loss, residual, ctx.reduction, ctx.dtype, ctx.backend)
    return grad, *[None] * 9


_relation = Differentiable(
    "token_relation",
    "token_relation_loss",
    Pass(_forward, _forward_fake),
    Pass(_backward, _backward_fake),
    _save,
    _gradients,
)
