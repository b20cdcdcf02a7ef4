"""`lgf::token_relation`: token relation distances; the gradient is made in the forward and scaled in the backward."""

import torch
from torch import Tensor, library

from .. import checks, reference
from ..backends import implementation
from ..numerics import accumulate_dtype
from .common import forbid_double_backward, map_one_by_one, needs_gradient, shortest, undispatched, without_autocast


def token_relation(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, margin: float, reduction: str, backend: str
) -> Tensor:
    if backend == "reference":
        with without_autocast(student):
            return reference.token_relation(student, teacher, pair_weight, margin, reduction)
    arguments = (student, teacher, pair_weight, margin, reduction, needs_gradient(student), backend)
    return shortest((student, teacher, pair_weight), _compute, _undispatched, _forward)(*arguments)[0]


def _compute(
    student: Tensor,
    teacher: Tensor,
    pair_weight: Tensor,
    margin: float,
    reduction: str,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    checks.nonnegative("token_relation_loss", "pair_weight", pair_weight)
    with without_autocast(student):
        return implementation(backend, "token_relation").forward(
            student, teacher, pair_weight, margin, reduction, needs_grad
        )


_forward = library.custom_op("lgf::token_relation", _compute, mutates_args=())


@_forward.register_fake
def _(student, teacher, pair_weight, margin, reduction, needs_grad, backend):
    shape = student.shape[:1] if reduction == "none" else ()
    residual = implementation(backend, "token_relation").empty_residual(student, needs_grad)
    return student.new_empty(shape, dtype=accumulate_dtype(student)), residual


def _compute_backward(grad_loss: Tensor, residual: Tensor, reduction: str, dtype: torch.dtype, backend: str) -> Tensor:
    with without_autocast(residual):
        return implementation(backend, "token_relation").backward(grad_loss, residual, reduction, dtype)


_backward = library.custom_op("lgf::token_relation_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(grad_loss, residual, reduction, dtype, backend):
    return torch.empty_like(residual, dtype=dtype)


def _save(ctx, inputs, output):
    student, _, _, _, ctx.reduction, _, ctx.backend = inputs
    _, residual = output
    ctx.save_for_backward(residual)
    ctx.dtype = student.dtype
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss, grad_residual):
    (residual,) = ctx.saved_tensors
    if grad_loss is None:
        grad = None
    else:
        backward = shortest((grad_loss, residual), _compute_backward, _backward, _backward)
        grad = backward(grad_loss, residual, ctx.reduction, ctx.dtype, ctx.backend)
    return grad, None, None, None, None, None, None


_undispatched = undispatched(_forward, _compute, _save, _differentiate)
_forward.register_autograd(_differentiate, setup_context=_save)
forbid_double_backward(_backward, "token_relation_loss")
map_one_by_one(_forward)
map_one_by_one(_backward)
