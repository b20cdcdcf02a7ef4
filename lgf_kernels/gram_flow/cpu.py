"""Launches the Local Gram Flow kernels of the C++ modules: allocates the outputs and passes addresses."""

import torch
from torch import Tensor

from ..numerics import accumulate_dtype, last_dimension_contiguous, lgf_pairs_shape, window_mask
from ..options import LgfOptions
from . import (
    address,
    described,
    dtype_name,
    empty_norms,
    execution,
    module,
    reciprocal_norms,
    takes_streams,
    window_row,
)


def forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    features = last_dimension_contiguous(features)
    shape = (*lgf_pairs_shape(features), options.window**2)
    logits = features.new_empty(shape, dtype=accumulate_dtype(features))
    norms = empty_norms(features, options)
    gpu = {"norms": address(norms)} if takes_streams(features) else {}
    with torch.cuda.device_of(features):
        module(features).local_gram_flow(
            described(features),
            tuple(features.shape[:4]),
            logits.data_ptr(),
            window=options.window,
            similarity=options.similarity,
            backward=options.direction == "backward",
            **gpu,
            **execution(features),
        )
    return logits


def backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    features = last_dimension_contiguous(features)
    grad_logits = grad_logits.to(accumulate_dtype(features))
    norms = empty_norms(features, options)
    if takes_streams(features):
        rows = grad_logits.unflatten(-1, (options.window, options.window))
        grad_logits = rows.new_empty((*rows.shape[:-1], window_row(features, options.window)))
        grad_logits[..., :-1] = rows
        if norms is not None:
            with torch.cuda.device_of(features):
                reciprocal_norms(features, norms)
    else:
        # The logits outside the frame are constants, so their gradient is ignored, be it NaN.
        inside = window_mask(*features.shape[2:4], options.window, features.device)
        grad_logits = torch.where(inside, grad_logits, 0.0).contiguous()
    return features_gradient(features, {options.direction: grad_logits}, options, norms)


def features_gradient(
    features: Tensor,
    grad_logits: dict[str, Tensor],
    options: LgfOptions,
    norms: Tensor | None = None,
    scales: Tensor | None = None,
    scale: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Gradient of `factor * scale * sum scales[i] * grad_logits[direction][i, d] * z[i, d]` over the directions given.

    `grad_logits[direction]` (B, T-1, H, W, K, row), with rows as `window_row` has them, is contiguous, in the accumulation
    type or that of a residual. So are `scales` (B, T-1, H, W) and the one number `scale`. `norms`: the reciprocal norms of
    the features, where `empty_norms` makes room for some. `scale` and `factor` are for CUDA tensors.
    """
    features = last_dimension_contiguous(features)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    if takes_streams(features):
        directions = {direction: (g.data_ptr(), dtype_name(g)) for direction, g in grad_logits.items()}
        scaling = {"scales": address(scales), "scale": address(scale), "factor": factor, "norms": address(norms)}
    else:
        directions = {direction: (g.data_ptr(), address(scales)) for direction, g in grad_logits.items()}
        scaling = {}
    with torch.cuda.device_of(features):
        module(features).gram_backward(
            described(features),
            tuple(features.shape[:4]),
            directions.get("forward"),
            directions.get("backward"),
            gradient.data_ptr(),
            window=options.window,
            similarity=options.similarity,
            **scaling,
            **execution(features),
        )
    return gradient
