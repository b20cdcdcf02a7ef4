"""Launches the Local Gram Flow kernels of the C++ modules: allocates the outputs and passes addresses."""

import torch
from torch import Tensor

from ..numerics import accumulate_dtype, last_dimension_contiguous, lgf_pairs_shape, window_mask
from ..options import LgfOptions
from . import described, described_gradient, execution, module, norms_workspace


def forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    features = last_dimension_contiguous(features)
    shape = (*lgf_pairs_shape(features), options.window**2)
    logits = features.new_empty(shape, dtype=accumulate_dtype(features))
    workspace = norms_workspace([features], options)
    with torch.cuda.device_of(features):
        module(features).local_gram_flow(
            described(features),
            tuple(features.shape[:4]),
            logits.data_ptr(),
            window=options.window,
            similarity=options.similarity,
            backward=options.direction == "backward",
            **execution(features, workspace),
        )
    return logits


def backward(grad_logits: Tensor, features: Tensor, options: LgfOptions) -> Tensor:
    inside = window_mask(*features.shape[2:4], options.window, features.device)
    # The logits outside the frame are constants, so their gradient is ignored, be it NaN.
    grad_logits = torch.where(inside, grad_logits.to(accumulate_dtype(features)), 0.0).contiguous()
    return features_gradient(features, {options.direction: grad_logits}, None, options)


def features_gradient(
    features: Tensor, grad_logits: dict[str, Tensor], scale: Tensor | None, options: LgfOptions
) -> Tensor:
    """Gradient of `sum scale[i] * grad_logits[direction][i, d] * z[i, d]` over the directions given.

    `grad_logits[direction]` (B, T-1, H, W, K*K) is contiguous, in the accumulation type or that of a residual; `scale`
    (B, T-1, H, W) is as `scale_as_taken` returns it, in the accumulation type.
    """
    features = last_dimension_contiguous(features)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    directions = {direction: described_gradient(features, g, scale) for direction, g in grad_logits.items()}
    workspace = norms_workspace([features], options)
    with torch.cuda.device_of(features):
        module(features).gram_backward(
            described(features),
            tuple(features.shape[:4]),
            directions.get("forward"),
            directions.get("backward"),
            gradient.data_ptr(),
            window=options.window,
            similarity=options.similarity,
            **execution(features, workspace),
        )
    return gradient
