"""Launches the Local Gram Flow kernels of the C++ modules: allocates the outputs and passes addresses."""

import torch
from torch import Tensor

from ..numerics import accumulate_dtype, last_dimension_contiguous, lgf_pairs_shape, window_mask
from ..options import LgfOptions
from . import described, module


def forward(features: Tensor, options: LgfOptions) -> Tensor:
    """Logits (B, T-1, H, W, K*K) of features (B, T, H, W, C), in the accumulation type."""
    features = last_dimension_contiguous(features)
    shape = (*lgf_pairs_shape(features), options.window**2)
    logits = features.new_empty(shape, dtype=accumulate_dtype(features))
    module(features).local_gram_flow(
        described(features),
        tuple(features.shape[:4]),
        logits.data_ptr(),
        window=options.window,
        similarity=options.similarity,
        backward=options.direction == "backward",
        num_threads=torch.get_num_threads(),
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

    `grad_logits[direction]` (B, T-1, H, W, K*K) and `scale` (B, T-1, H, W) are contiguous, in the accumulation type.
    """
    features = last_dimension_contiguous(features)
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    scale_address = None if scale is None else scale.data_ptr()
    addresses = {direction: (g.data_ptr(), scale_address) for direction, g in grad_logits.items()}
    module(features).gram_backward(
        described(features),
        tuple(features.shape[:4]),
        addresses.get("forward"),
        addresses.get("backward"),
        gradient.data_ptr(),
        window=options.window,
        similarity=options.similarity,
        num_threads=torch.get_num_threads(),
    )
    return gradient
