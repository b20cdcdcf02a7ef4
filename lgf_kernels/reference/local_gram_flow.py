"""Local Gram Flow, literally.

    z[b, t, y, x, d] = < f[b, t, y, x], f[b, t+1, y+dy, x+dx] >       d = (dy, dx) in [-r, r]^2, r = (K-1)/2

with f the L2-normalised features for similarity "cosine" and the features themselves for "dot"; z = 0 outside the
frame. SAM2VideoX, section 4.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import EPS, accumulate_dtype, norms
from ..options import LgfOptions


def local_gram_flow(features: Tensor, options: LgfOptions, dtype: torch.dtype | None = None) -> Tensor:
    """(B, T-1, H, W, K*K) from features (B, T, H, W, C), differentiable. `dtype`: in which to compute."""
    f = features.to(dtype or accumulate_dtype(features))
    if options.similarity == "cosine":
        f = f / norms(f).clamp_min(EPS)
    queries, keys = f[:, :-1], f[:, 1:]
    if options.direction == "backward":
        queries, keys = keys, queries
    H, W = f.shape[2:4]
    r = options.radius
    keys = F.pad(keys, (0, 0, r, r, r, r))
    shifts = [keys[:, :, y : y + H, x : x + W] for y in range(options.window) for x in range(options.window)]
    return torch.stack([(queries * shifted).sum(-1) for shifted in shifts], dim=-1)
