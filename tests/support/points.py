"""Queries, targets and weights of point correspondence."""

import torch


def points(B, N, T, H, W, on_tokens=False):
    """Queries (B, N, 3) anywhere in the video, targets (B, N, T, 2) also outside of it, and weights (B, N, T), some 0."""
    where = torch.rand(B, N, 3, dtype=torch.float64) * torch.tensor([T, H - 1, W - 1])
    queries = where.floor() if on_tokens else torch.cat([where[..., :1].floor(), where[..., 1:]], -1)
    targets = torch.rand(B, N, T, 2, dtype=torch.float64) * torch.tensor([H + 2, W + 2]) - 1
    weight = torch.rand(B, N, T, dtype=torch.float64)
    return queries, targets, weight.where(weight > 0.3, 0)
