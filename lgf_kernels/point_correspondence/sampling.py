"""Features at the queries, between tokens, and the way back of their gradient: what every backend shares."""

from typing import NamedTuple

import torch
from torch import Tensor

#: Channels of a gradient that are added at a time: room for 4 corners of all queries need not be as wide as the features.
CHANNELS_AT_A_TIME = 64


class Corners(NamedTuple):
    """The four tokens around each query, (B, N, 4) each.

    A query on a token has that token in place of the corners whose share is 0: what is not sampled is not read either.
    """

    frame: Tensor
    row: Tensor
    column: Tensor
    share: Tensor
    """beta, in the accumulation type; NaN for a query outside the video, which makes its loss NaN."""


def corners_of(queries: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Corners:
    """The corners of queries (B, N, 3) in features of this shape (B, T, H, W, C)."""
    _, T, H, W, _ = shape
    t, y, x = queries.to(torch.promote_types(queries.dtype, dtype)).unbind(-1)
    inside = (t == t.floor()) & (t >= 0) & (t < T) & (y >= 0) & (y <= H - 1) & (x >= 0) & (x <= W - 1)
    t, y, x = (place.where(inside, 0) for place in (t, y, x))
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    up = torch.where(inside, 1 - down, torch.nan)
    down = torch.where(inside, down, torch.nan)
    top, left = top.long(), left.long()
    bottom, far = top + (down > 0), left + (right > 0)
    share = torch.stack([up * (1 - right), up * right, down * (1 - right), down * right], -1).to(dtype)
    rows, columns = torch.stack([top, top, bottom, bottom], -1), torch.stack([left, far, left, far], -1)
    return Corners(t.long()[..., None].expand_as(rows), rows, columns, share)


def sampled(features: Tensor, corners: Corners) -> Tensor:
    """f_q (B, N, C), bilinear between the raw features (B, T, H, W, C), in the accumulation type."""
    b = torch.arange(len(features), device=features.device)[:, None]
    total = 0
    for frame, row, column, share in zip(*(part.unbind(-1) for part in corners), strict=True):
        total = total + share[..., None] * features[b, frame, row, column].to(share.dtype)
    return total


def add_at_corners(gradient: Tensor, corners: Corners, upstream: Tensor) -> None:
    """Add the gradient of f_q (B, N, C) at the corners of the contiguous gradient of the features (B, T, H, W, C).

    Corners at the same token are summed in the order of the queries, by sorting them: the same bits each time, without
    float atomics, and no number of them that the host would have to wait for.
    """
    B, T, H, W, C = gradient.shape
    if upstream.numel() == 0:
        return
    b = torch.arange(B, device=gradient.device)[:, None, None]
    token = ((b * T + corners.frame) * H + corners.row) * W + corners.column
    token, order = token.flatten().sort(stable=True)
    segment = (token.diff(prepend=token[:1]) != 0).cumsum(0)
    share, query = corners.share.flatten()[order, None], order // 4
    gradient, upstream = gradient.view(-1, C), upstream.flatten(0, 1)
    for c in range(0, C, CHANNELS_AT_A_TIME):
        channels = slice(c, c + CHANNELS_AT_A_TIME)
        terms = upstream[:, channels][query].mul_(share)
        sums = torch.zeros_like(terms)
        if sums.device.type == "cpu":
            sums.index_add_(0, segment, terms)  # row after row; index_put_ would add with atomics
        else:
            sums.index_put_((segment,), terms, accumulate=True)  # sorts; index_add_ would add with atomics
        # All that stand at a token write the same.
        before = gradient[:, channels][token]
        gradient[:, channels][token] = sums[segment].add_(before).to(gradient.dtype)
