"""Motion from Local Gram Flow, its error, and pixel descriptors to compute it from."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad, unfold

from lgf_kernels import local_gram_flow, local_window_mask

READABLE = 0.3  # certainty: below it a displacement is that of a plain surface's edge, and is neither drawn nor counted
TOKEN = 8  # pixels along one side of a token of `patch_descriptors`


def window_offsets(window: int) -> Tensor:
    """Return (dy, dx) of each position of the window, in the order of `local_gram_flow`: (window * window, 2)."""
    steps = torch.arange(window) - window // 2
    return torch.cartesian_prod(steps, steps).float()


def window_distribution(logits: Tensor, window: int = 7, temperature: float = 0.1) -> Tensor:
    """Return softmax(logits / temperature) over the positions inside the frame: (..., H, W, window * window)."""
    inside = local_window_mask(*logits.shape[-3:-1], window, device=logits.device)
    return (logits / temperature).masked_fill(~inside, -torch.inf).softmax(-1)


def expected_motion(logits: Tensor, window: int = 7, temperature: float = 0.1) -> Tensor:
    """Return the expected displacement sum_d P[d] * d, P = `window_distribution`, of each token to the next frame.

    Args:
        logits: (..., H, W, window * window) from `local_gram_flow` (for a fused teacher, the weighted sum of several).

    Returns:
        (..., H, W, 2) displacements (dy, dx) in tokens.
    """
    return window_distribution(logits, window, temperature) @ window_offsets(window).to(logits.device)


def strongest_motion(logits: Tensor, window: int = 7) -> Tensor:
    """Return the displacement (..., H, W, 2) to the position in the window most like each token; as `expected_motion`."""
    inside = local_window_mask(*logits.shape[-3:-1], window, device=logits.device)
    best = logits.masked_fill(~inside, -torch.inf).argmax(-1)
    return window_offsets(window).to(logits.device)[best]


def certainty(logits: Tensor, window: int = 7, temperature: float = 0.1) -> Tensor:
    """Return 1 - entropy / its maximum of each token's distribution (..., H, W): 0 if all positions are alike, 1 if one is sure.

    Where it is near 0 there is no motion to be read: the mean displacement of a flat distribution points from the border of
    the frame, or of a plain surface, inwards.
    """
    inside = local_window_mask(*logits.shape[-3:-1], window, device=logits.device).sum(-1)
    entropy = torch.special.entr(window_distribution(logits, window, temperature)).sum(-1)
    return 1 - entropy / inside.log()


def motion_of(features: Tensor, backend: str | None = None) -> Tensor:
    """Return `expected_motion` (B, T-1, H, W, 2) of features (B, T, H, W, C)."""
    return expected_motion(local_gram_flow(features.float(), backend=backend))


def end_point_error(predicted: Tensor, true: Tensor, where: Tensor) -> float:
    """Return the mean distance in tokens between displacements (..., 2), over the tokens of the mask `where` (...)."""
    return (predicted - true).norm(dim=-1)[where].mean().item()


def patch_descriptors(video: Tensor, components: int = 64, floor: float = 0.1) -> Tensor:
    """Return normalised descriptors (T, H, W, components) of a video (T, 3, 8H, 8W): 24 x 24 pixels around each token.

    Raw patches of natural pictures all look alike. So patches, at half resolution, are whitened: projected on the
    video's own principal components, each divided by its standard deviation (plus `floor` times the largest, to keep
    noise down). Then each descriptor is normalised to length 1.
    """
    half = avg_pool2d(video, 2)
    side, step = 3 * TOKEN // 2, TOKEN // 2
    patches = unfold(pad(half, [(side - step) // 2] * 4, mode="replicate"), side, stride=step).transpose(1, 2)
    centred = patches - patches.mean((0, 1))
    # In float64: in float32 LAPACK may give up on patches that are few or all alike.
    variance, axes = (
        each.to(video.dtype) for each in torch.linalg.eigh(centred.flatten(0, 1).T.cov(correction=0).double())
    )
    deviation = variance.clamp(min=1e-12).sqrt()
    whitened = centred @ (axes / (deviation + floor * deviation[-1]))[:, -components:]
    grid = (video.shape[2] // TOKEN, video.shape[3] // TOKEN)
    return normalize(whitened, dim=-1).unflatten(1, grid)
