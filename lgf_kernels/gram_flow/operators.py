"""The operators `lgf::local_gram_flow` and `lgf::lgf_kl`, and the backends that run them."""

import torch
from torch import Tensor

from ..core import checks, native
from ..core.autograd import Differentiable, Pass, check_where_readable, kept, needs_gradient, without_autocast
from ..core.gpu import triton_backend
from ..core.numerics import accumulate_dtype, relative_weight
from ..core.registry import PORTABLE, REFERENCE, Backend, Call, Proof, implementation, register
from . import reference
from .options import LgfOptions
from .trial import FLOW_VARIANTS, LOSS_VARIANTS, trial
from .window import pairs_shape

#: Most teachers that the parameters of a CUDA C++ kernel hold (`kMaxTeachers` in csrc/cuda/gram_flow/calls.h).
MAX_TEACHERS = 15


def cuda_unsupported_reason(call: Call) -> str | None:
    teachers = call.fact("teachers", 0)
    if teachers > MAX_TEACHERS:
        return f"its CUDA C++ kernels take at most {MAX_TEACHERS} teachers, and there are {teachers}"
    return native.unsupported_reason(call)


CPU = Backend("native", "cpu", native.unsupported_reason, device_types=("cpu",))
CUDA = Backend(
    "native", "cuda", cuda_unsupported_reason, device_types=("cuda",), verified_on=("cuda",), limits=native.CUDA_LIMITS
)
CUDA_LOSS = CUDA._replace(limits=f"at most {MAX_TEACHERS} teachers; {native.CUDA_LIMITS}")
register(
    "local_gram_flow", __package__, CPU, CUDA, triton_backend("triton_flow"), PORTABLE, REFERENCE,
    proof=Proof(trial, FLOW_VARIANTS),
)  # fmt: skip
register(
    "lgf_kl", __package__, CPU, CUDA_LOSS, triton_backend("triton_loss"), PORTABLE, REFERENCE,
    proof=Proof(trial, LOSS_VARIANTS),
)  # fmt: skip


# ---- local_gram_flow: features (B, T, H, W, C) to logits (B, T-1, H, W, K*K) ------------------------------------


def local_gram_flow(features: Tensor, options: LgfOptions, backend: str) -> Tensor:
    if backend == "reference":
        with without_autocast(features):
            return reference.local_gram_flow(features, options)
    return _flow(features, options.window, options.similarity, options.direction, backend)


def _flow_forward(features: Tensor, window: int, similarity: str, direction: str, backend: str) -> Tensor:
    options = LgfOptions(window=window, similarity=similarity, direction=direction)
    with without_autocast(features):
        return implementation("local_gram_flow", backend, features.device.type).forward(features, options)


def _flow_forward_fake(features, window, similarity, direction, backend):
    return features.new_empty((*pairs_shape(features), window * window), dtype=accumulate_dtype(features))


def _flow_backward(
    grad_logits: Tensor, features: Tensor, window: int, similarity: str, direction: str, backend: str
) -> Tensor:
    options = LgfOptions(window=window, similarity=similarity, direction=direction)
    with without_autocast(features):
        return implementation("local_gram_flow", backend, features.device.type).backward(grad_logits, features, options)


def _flow_backward_fake(grad_logits, features, *options):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _flow_save(ctx, inputs, output):
    features, *ctx.options = inputs
    ctx.save_for_backward(features)


def _flow_gradients(ctx, backward, grad_logits):
    (features,) = ctx.saved_tensors
    return backward(grad_logits, features, *ctx.options), None, None, None, None


_flow = Differentiable(
    "local_gram_flow", "local_gram_flow", Pass(_flow_forward, _flow_forward_fake),
    Pass(_flow_backward, _flow_backward_fake), _flow_save, _flow_gradients,
)  # fmt: skip


# ---- lgf_kl: the loss, from teacher features or from cached teacher logits ---------------------------------------


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
        check_where_readable(_check_weight, token_weight, from_logits)
        token_weight = relative_weight(token_weight, accumulate_dtype(student), options.reduction)
        with without_autocast(student):
            return reference.lgf_kl(student, teachers, teacher_weights, token_weight, options, from_logits)
    arguments = (student, teachers, teacher_weights, token_weight, from_logits, needs_gradient(student), backend)
    return _loss(*arguments, *options)[0]


def _check_weight(token_weight: Tensor | None, from_logits: bool) -> None:
    if token_weight is not None:
        function = "lgf_kl_loss_from_logits" if from_logits else "lgf_kl_loss"
        checks.nonnegative(function, "token_weight", token_weight)


def _loss_forward(
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
    _check_weight(token_weight, from_logits)
    token_weight = relative_weight(token_weight, accumulate_dtype(student), reduction)
    options = LgfOptions(window, temperature, similarity, boundary, divergence, direction, reduction)
    with without_autocast(student):
        return implementation("lgf_kl", backend, student.device.type).forward(
            student, teachers, teacher_weights, token_weight, options, from_logits, needs_grad
        )


def _loss_forward_fake(student, teachers, teacher_weights, token_weight, from_logits, needs_grad, backend, *options):
    options = LgfOptions(*options)
    shape = pairs_shape(student) if options.reduction == "none" else ()
    residual = implementation("lgf_kl", backend, student.device.type).empty_residual(student, options, needs_grad)
    return student.new_empty(shape, dtype=accumulate_dtype(student)), residual


def _loss_backward(
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
    token_weight = relative_weight(token_weight, accumulate_dtype(student), reduction)
    options = LgfOptions(window, temperature, similarity, boundary, divergence, direction, reduction)
    with without_autocast(student):
        return implementation("lgf_kl", backend, student.device.type).backward(
            grad_loss, student, residual, token_weight, options
        )


def _loss_backward_fake(grad_loss, student, residual, token_weight, backend, *options):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _loss_save(ctx, inputs, output):
    student, teachers, _, token_weight, _, _, *ctx.options = inputs
    ctx.no_teacher_gradients = [None] * len(teachers)
    _, residual = output
    ctx.save_for_backward(student, residual, kept(token_weight))
    ctx.set_materialize_grads(False)


def _loss_gradients(ctx, backward, grad_loss, grad_residual):
    student, residual, token_weight = ctx.saved_tensors
    grad = None
    if grad_loss is not None:
        grad = backward(grad_loss, student, residual, token_weight, *ctx.options)
    return grad, ctx.no_teacher_gradients, None, None, None, None, *[None] * len(ctx.options)


_loss = Differentiable(
    "lgf_kl", "lgf_kl_loss", Pass(_loss_forward, _loss_forward_fake), Pass(_loss_backward, _loss_backward_fake),
    _loss_save, _loss_gradients,
)  # fmt: skip
