"""Motion read from Local Gram Flow, and how far it is from the truth."""

import torch
from torch import Tensor

from lgf_kernels import local_gram_flow, local_window_mask


def window_offsets(window: int) -> Tensor:
    """The (dy, dx) of each of the window * window positions, in the order of `local_gram_flow`: (window * window, 2)."""
    steps = torch.arange(window) - window // 2
    return torch.cartesian_prod(steps, steps).float()


def expected_motion(logits: Tensor, window: int = 7, temperature: float = 0.1) -> Tensor:
    """Expected displacement sum_d P[d] * d, P = softmax(logits / temperature), of each token towards the next frame.

    Args:
        logits: (..., H, W, window * window) from `local_gram_flow` (for a fused teacher, the weighted sum of several).

    Returns:
        (..., H, W, 2) displacements (dy, dx) in tokens.
    """
    inside = local_window_mask(*logits.shape[-3:-1], window, device=logits.device)
    probability = (logits / temperature).masked_fill(~inside, -torch.inf).softmax(-1)
    return probability @ window_offsets(window).to(logits.device)


def motion_of(features: Tensor, backend: str | None = None) -> Tensor:
    """`expected_motion` (B, T-1, H, W, 2) of features (B, T, H, W, C)."""
    return expected_motion(local_gram_flow(features.float(), backend=backend))


def end_point_error(predicted: Tensor, true: Tensor, where: Tensor) -> float:
    """Mean distance in tokens between displacements (..., 2), over the tokens of the boolean mask `where` (...)."""
    return (predicted - true).norm(dim=-1)[where].mean().item()
