"""Token relation losses as plain PyTorch computes them, in the type of the inputs throughout."""

import torch.nn.functional as F


def eager(student, teacher, *, pair_weight, distance="l1", negatives="keep", similarity="cosine"):
    B, frames, N, _ = student.shape
    z, m = (f.flatten(1, 2) for f in (student, teacher))
    if similarity == "cosine":
        z, m = (F.normalize(f, dim=-1, eps=1e-6) for f in (z, m))
    s_z, s_m = z @ z.mT, m @ m.mT
    if negatives == "clamp":
        s_z = s_z.relu()
    if negatives != "keep":
        s_m = s_m.relu()
    pairs = (s_z - s_m).abs() if distance == "l1" else (s_z - s_m).square()
    return (pair_weight * pairs.reshape(B, frames, N, frames, N).mean((2, 4))).sum((1, 2)).mean()
