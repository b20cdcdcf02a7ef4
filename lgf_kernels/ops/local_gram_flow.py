"""`lgf::local_gram_flow`: features (B, T, H, W, C) to logits (B, T-1, H, W, K*K)."""

import torch
from torch import Tensor, library

from .. import reference
from ..backends import implementation
from ..numerics import accumulate_dtype, lgf_pairs_shape
from ..options import LgfOptions
from .common import forbid_double_backward, map_one_by_one, shortest, undispatched, without_autocast


def local_gram_flow(features: Tensor, options: LgfOptions, backend: str) -> Tensor:
    if backend == "reference":
        with without_autocast(features):
            return reference.local_gram_flow(features, options)
    forward = shortest((features,), _compute, _undispatched, _forward)
    return forward(features, options.window, options.similarity, options.direction, backend)


def _compute(features: Tensor, window: int, similarity: str, direction: str, backend: str) -> Tensor:
    options = LgfOptions(window=window, similarity=similarity, direction=direction)
    with without_autocast(features):
        return implementation(backend, "local_gram_flow").forward(features, options)


_forward = library.custom_op("lgf::local_gram_flow", _compute, mutates_args=())


@_forward.register_fake
def _(features, window, similarity, direction, backend):
    shape = (*lgf_pairs_shape(features), window * window)
    return features.new_empty(shape, dtype=accumulate_dtype(features))


def _compute_backward(
    grad_logits: Tensor, features: Tensor, window: int, similarity: str, direction: str, backend: str
) -> Tensor:
    options = LgfOptions(window=window, similarity=similarity, direction=direction)
    with without_autocast(features):
        return implementation(backend, "local_gram_flow").backward(grad_logits, features, options)


_backward = library.custom_op("lgf::local_gram_flow_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(grad_logits, features, window, similarity, direction, backend):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    features, *ctx.options = inputs
    ctx.save_for_backward(features)


def _differentiate(ctx, grad_logits):
    (features,) = ctx.saved_tensors
    backward = shortest((grad_logits, features), _compute_backward, _backward, _backward)
    return backward(grad_logits, features, *ctx.options), None, None, None, None


_undispatched = undispatched(_forward, _compute, _save, _differentiate)
_forward.register_autograd(_differentiate, setup_context=_save)
forbid_double_backward(_backward, "local_gram_flow")
map_one_by_one(_forward)
map_one_by_one(_backward)
