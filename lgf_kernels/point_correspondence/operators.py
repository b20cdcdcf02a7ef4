"""The operators `lgf::point_correspondence` and its loss, and the backends that run them: one row of the registry for both."""

import torch
from torch import Tensor

from ..core import checks, native
from ..core.autograd import Differentiable, Pass, check_where_readable, kept, needs_gradient, without_autocast
from ..core.gpu import triton_backend
from ..core.numerics import accumulate_dtype
from ..core.registry import PORTABLE, REFERENCE, Backend, Proof, implementation, register
from . import reference
from .distance import places_gradient, places_shape, reduced, state_shape
from .options import PointOptions, queries_inside
from .trial import VARIANTS, trial

CPU = Backend("native", "cpu", native.unsupported_reason, device_types=("cpu",))
register(
    "point_correspondence",
    __package__,
    CPU,
    triton_backend("triton_kernels"),
    PORTABLE,
    REFERENCE,
    proof=Proof(trial, VARIANTS),
)


def _backend(features: Tensor, backend: str):
    return implementation("point_correspondence", backend, features.device.type)


def _empty(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    return features.new_empty(shape, dtype=accumulate_dtype(features))


# ---- point_correspondence: features (B, T, H, W, C) and queries (B, N, 3) to places (B, N, T, 2) -------------------


def point_correspondence(features: Tensor, queries: Tensor, options: PointOptions, backend: str) -> Tensor:
    if backend == "reference":
        check_where_readable(_check_queries, queries, features)
        with without_autocast(features):
            return reference.point_correspondence(features, queries, options)
    return _places(features, queries, needs_gradient(features), backend, options.temperature, options.window)[0]


def _check_queries(queries: Tensor, features: Tensor) -> None:
    queries_inside("point_correspondence", queries, features)


def _places_forward(
    features: Tensor, queries: Tensor, needs_grad: bool, backend: str, temperature: float, window: int | None
) -> tuple[Tensor, Tensor]:
    _check_queries(queries, features)
    with without_autocast(features):
        places, state = _backend(features, backend).forward(features, queries, temperature, window)
    return places, state if needs_grad else state.new_empty(0)


def _places_forward_fake(features, queries, needs_grad, backend, temperature, window):
    state = state_shape(features, queries, window) if needs_grad else (0,)
    return _empty(features, places_shape(features, queries)), _empty(features, state)


def _places_backward(
    grad_places: Tensor,
    features: Tensor,
    queries: Tensor,
    places: Tensor,
    state: Tensor,
    backend: str,
    temperature: float,
    window: int | None,
) -> Tensor:
    with without_autocast(features):
        return _backend(features, backend).backward(grad_places, features, queries, places, state, temperature, window)


def _places_backward_fake(grad_places, features, *rest):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _places_save(ctx, inputs, output):
    features, queries, _, *ctx.options = inputs
    ctx.save_for_backward(features, kept(queries), *output)
    ctx.set_materialize_grads(False)


def _places_gradients(ctx, backward, grad_places, grad_state):
    grad = None if grad_places is None else backward(grad_places, *ctx.saved_tensors, *ctx.options)
    return grad, None, None, *[None] * len(ctx.options)


_places = Differentiable(
    "point_correspondence", "point_correspondence", Pass(_places_forward, _places_forward_fake),
    Pass(_places_backward, _places_backward_fake), _places_save, _places_gradients,
)  # fmt: skip


# ---- point_correspondence_loss: the places' distances from their targets ------------------------------------------


def point_correspondence_loss(
    features: Tensor, queries: Tensor, targets: Tensor, weight: Tensor | None, options: PointOptions, backend: str
) -> Tensor:
    if backend == "reference":
        check_where_readable(_check_points, queries, weight, features)
        with without_autocast(features):
            return reference.point_correspondence_loss(features, queries, targets, weight, options)
    return _loss(features, queries, targets, weight, needs_gradient(features), backend, *options)[0]


def _check_points(queries: Tensor, weight: Tensor | None, features: Tensor) -> None:
    queries_inside("point_correspondence_loss", queries, features)
    if weight is not None:
        checks.nonnegative("point_correspondence_loss", "weight", weight)


def _loss_forward(
    features: Tensor,
    queries: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    needs_grad: bool,
    backend: str,
    temperature: float,
    window: int | None,
    distance: str,
    delta: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_points(queries, weight, features)
    options = PointOptions(temperature, window, distance, delta, reduction)
    with without_autocast(features):
        places, state = _backend(features, backend).forward(features, queries, temperature, window)
        loss = reduced(places, queries, targets, weight, options)
    return (loss, places, state) if needs_grad else (loss, places.new_empty(0), state.new_empty(0))


def _loss_forward_fake(features, queries, targets, weight, needs_grad, backend, *options):
    options = PointOptions(*options)
    loss = places_shape(features, queries)[:3] if options.reduction == "none" else ()
    places = places_shape(features, queries) if needs_grad else (0,)
    state = state_shape(features, queries, options.window) if needs_grad else (0,)
    return _empty(features, loss), _empty(features, places), _empty(features, state)


def _loss_backward(
    grad_loss: Tensor,
    features: Tensor,
    queries: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    places: Tensor,
    state: Tensor,
    backend: str,
    temperature: float,
    window: int | None,
    distance: str,
    delta: float,
    reduction: str,
) -> Tensor:
    options = PointOptions(temperature, window, distance, delta, reduction)
    with without_autocast(features):
        grad_places = places_gradient(grad_loss, places, queries, targets, weight, options)
        return _backend(features, backend).backward(grad_places, features, queries, places, state, temperature, window)


def _loss_save(ctx, inputs, output):
    features, queries, targets, weight, _, *ctx.options = inputs
    _, places, state = output
    ctx.save_for_backward(features, *map(kept, (queries, targets, weight)), places, state)
    ctx.set_materialize_grads(False)


def _loss_gradients(ctx, backward, grad_loss, grad_places, grad_state):
    grad = None if grad_loss is None else backward(grad_loss, *ctx.saved_tensors, *ctx.options)
    return grad, None, None, None, None, *[None] * len(ctx.options)


_loss = Differentiable(
    "point_correspondence_loss", "point_correspondence_loss", Pass(_loss_forward, _loss_forward_fake),
    Pass(_loss_backward, _places_backward_fake), _loss_save, _loss_gradients,
)  # fmt: skip
