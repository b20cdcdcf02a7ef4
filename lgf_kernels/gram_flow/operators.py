"""`lgf::lgf_kl`: the Local Gram Flow loss, from teacher features or from cached teacher logits."""

import torch
from torch import Tensor, library

from .. import checks, reference
from ..backends import implementation
from ..numerics import accumulate_dtype, lgf_pairs_shape
from ..options import LgfOptions
from .common import forbid_double_backward, map_one_by_one, needs_gradient, shortest, undispatched, without_autocast


def lgf_kl(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    backend: str,
) -> Tensor:
    if backend == "reference":
        with without_autocast(student):
            return reference.lgf_kl(student, teachers, teacher_weights, token_weight, options, from_logits)
    arguments = (student, teachers, teacher_weights, token_weight, from_logits, needs_gradient(student), backend)
    forward = shortest((student, *teachers, token_weight), _compute, _undispatched, _forward)
    return forward(*arguments, *options)[0]


def _compute(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    from_logits: bool,
    needs_grad: bool,
    backend: str,
    window: int,
    temperature: float,
    similarity: str,
    boundary: str,
    divergence: str,
    direction: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    if token_weight is not None:
        function = "lgf_kl_loss_from_logits" if from_logits else "lgf_kl_loss"
        checks.nonnegative(function, "token_weight", token_weight)
    options = LgfOptions(window, temperature, similarity, boundary, divergence, direction, reduction)
    with without_autocast(student):
        return implementation(backend, "lgf_kl").forward(
            student, teachers, teacher_weights, token_weight, options, from_logits, needs_grad
        )


_forward = library.custom_op("lgf::lgf_kl", _compute, mutates_args=())


@_forward.register_fake
def _(
    student, teachers, teacher_weights, token_weight, from_logits, needs_grad, backend,
    window, temperature, similarity, boundary, divergence, direction, reduction,
):  # fmt: skip
    options = LgfOptions(window, temperature, similarity, boundary, divergence, direction, reduction)
    shape = lgf_pairs_shape(student) if reduction == "none" else ()
    residual = implementation(backend, "lgf_kl").empty_residual(student, options, needs_grad)
    return student.new_empty(shape, dtype=accumulate_dtype(student)), residual


def _compute_backward(
    grad_loss: Tensor,
    student: Tensor,
    residual: Tensor,
    token_weight: Tensor | None,
    backend: str,
    window: int,
    temperature: float,
    similarity: str,
    boundary: str,
    divergence: str,
    direction: str,
    reduction: str,
) -> Tensor:
    options = LgfOptions(window, temperature, similarity, boundary, divergence, direction, reduction)
    with without_autocast(student):
        return implementation(backend, "lgf_kl").backward(grad_loss, student, residual, token_weight, options)


_backward = library.custom_op("lgf::lgf_kl_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(grad_loss, student, residual, token_weight, backend, *options):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    student, teachers, _, token_weight, _, _, *ctx.options = inputs
    ctx.no_teacher_gradients = [None] * len(teachers)
    _, residual = output
    ctx.save_for_backward(student, residual, token_weight)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss, grad_residual):
    student, residual, token_weight = ctx.saved_tensors
    if grad_loss is None:
        grad = None
    else:
        backward = shortest((grad_loss, student, token_weight), _compute_backward, _backward, _backward)
        grad = backward(grad_loss, student, residual, token_weight, *ctx.options)
    return grad, ctx.no_teacher_gradients, None, None, None, None, *[None] * len(ctx.options)


_undispatched = undispatched(_forward, _compute, _save, _differentiate)
_forward.register_autograd(_differentiate, setup_context=_save)
forbid_double_backward(_backward, "lgf_kl_loss")
map_one_by_one(_forward)
map_one_by_one(_backward)
