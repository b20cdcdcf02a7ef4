"""Point correspondence over shards: the tokens around the queries travel."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..core import checks
from ..core.autograd import check_where_readable
from ..core.numerics import accumulate_dtype
from ..point_correspondence.api import point_correspondence_loss
from ..point_correspondence.distance import used_weight
from ..point_correspondence.options import checked_options, queries_inside
from ..point_correspondence.sampling import add_at_corners, corners_of, sampled
from .checks import REDUCTIONS, check_options, checked_rank, must_be_constant, must_be_part, must_have_pairs
from .exchange import AllReduce
from .shards import Frames


def sharded_point_correspondence_loss(
    features: Tensor,
    queries: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    shards: Frames,
    *,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    **options,
) -> Tensor:
    """Return this process's share of `point_correspondence_loss` of a video whose frames are spread over a group.

    The tokens around the queries, up to 4 for each, are taken from where their frames are and given to all; each process then
    looks for all points in its own frames. What to sum is said at `sharded_lgf_kl_loss`.

    Args:
        features: its frames, (B, frames, H, W, C).
        queries, targets, weight: of the whole video, as in `point_correspondence_loss`, the same in all processes.
        shards: `Frames`.
        reduction: "mean" (default) or "sum".
        group: as in `sharded_lgf_kl_loss`.
        options: temperature, distance, delta, window and backend of `point_correspondence_loss`.

    Raises:
        TypeError, ValueError: an argument is wrong. RuntimeError: there is no process group, or a process of it is gone.
    """
    here = "sharded_point_correspondence_loss"
    rank = checked_rank(here, shards, group, Frames)
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    check_options(here, options, ("temperature", "distance", "delta", "window"), ("backend",), checked_options)
    must_have_pairs(here, shards)
    must_be_part(here, "features", features, shards.part(rank), "(B, frames, H, W, C)")
    B, T = len(features), shards.size
    beside = ("features", features)
    must_be_constant(here, "queries", queries, (B, None, 3), "(B, N, 3)", *beside)
    N = queries.shape[1]
    must_be_constant(here, "targets", targets, (B, N, T, 2), "(B, N, T, 2)", *beside)
    dtype = accumulate_dtype(features)
    if weight is not None:
        must_be_constant(here, "weight", weight, (B, N, T), "(B, N, T)", *beside)
        check_where_readable(checks.nonnegative, here, "weight", weight)
    queries_inside(here, queries, features.new_empty((1, *shards.grid, 1), device="meta"))
    weight = used_weight(queries, weight, T, dtype, reduction)
    if reduction == "mean":  # divided first, as there: the sum of far targets may overflow where their mean does not
        total = weight.sum()
        weight = weight / total.where(total != 0, 1)

    lo, hi = shards.own(rank)
    tokens = _tokens_around(queries, shards.grid)
    frame = tokens[..., 0]
    here_is = (frame >= lo) & (frame < hi)
    if rank == 0:  # what is in no frame at all becomes NaN here
        here_is |= ~((frame >= 0) & (frame < T))
    tokens_here = torch.stack([frame - lo, *tokens[..., 1:].unbind(-1)], -1)
    features, sampled_here = _SampledHere.apply(features, tokens_here.flatten(1, 3), here_is.flatten(1, 3))
    around = AllReduce.apply(sampled_here, group)
    share = around[..., :0].sum() + features[..., :0].sum(dtype=dtype)
    if hi > lo and N:
        offset = queries.double() - tokens[:, :, 0, 0]
        canvas, places = _with_points(features, around.unflatten(1, tokens.shape[1:4]), offset)
        frames = canvas.shape[1] - (hi - lo)
        share = share + point_correspondence_loss(
            canvas,
            places,
            pad(targets[:, :, lo:hi], (0, 0, 0, frames)),
            pad(weight[:, :, lo:hi], (0, frames)),
            reduction="sum",
            **options,
        )
    return share if reduction == "sum" else torch.where(total == 0, torch.nan, share)


class _SampledHere(torch.autograd.Function):
    """The features as they are, and at the queries whose frame is here (B, N, C), 0 for the others.

    One function has both, so that their gradients are added before they are rounded, as in `point_correspondence`.
    """

    @staticmethod
    def forward(ctx, features, queries, here_is):
        ctx.save_for_backward(queries, here_is)
        dtype = accumulate_dtype(features)
        if features.numel() == 0:
            found = features.new_zeros((*queries.shape[:2], features.shape[-1]), dtype=dtype)
        else:
            corners = corners_of(_somewhere(queries, here_is), features.shape, dtype)
            found = torch.where(here_is[..., None], sampled(features, corners), 0)
        return features.view_as(features), found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_found):
        queries, here_is = ctx.saved_tensors
        gradient = grad.clone(memory_format=torch.contiguous_format)
        if gradient.numel():
            corners = corners_of(_somewhere(queries, here_is), gradient.shape, grad_found.dtype)
            add_at_corners(gradient, corners, torch.where(here_is[..., None], grad_found, 0))
        return gradient, None, None


def _somewhere(queries: Tensor, here_is: Tensor) -> Tensor:
    """Return the queries, with those that are not here at the first token."""
    return torch.where(here_is[..., None], queries, 0)


def _tokens_around(queries: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return frame, row and column of the tokens around queries (B, N, 3): (B, N, 2, 2, 3), and 1 for 2 where the grid has 1.

    Tokens, not what lies between them, are what may travel: they are exact in the features' type. Where a query is on a row
    or column, that stands in place of the next one, of which nothing is read.
    """
    t, y, x = queries.double()[:, :, None, None].unbind(-1)
    step_y, step_x = (torch.arange(min(2, size), device=queries.device) for size in grid[1:])
    row = y.floor() + step_y[:, None] * (y != y.floor())
    column = x.floor() + step_x * (x != x.floor())
    return torch.stack(torch.broadcast_tensors(t, row, column), -1)


def _with_points(features: Tensor, around: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Append frames of the tokens around each query (B, N, h, w, C) to features (B, T, H, W, C), side by side.

    Returns these, and the queries in them, each at its offset (B, N, 3) from the first token around it.
    """
    B, T, H, W, C = features.shape
    N, h, w = around.shape[1:4]
    down, across = H // h, W // w
    frames = -(-N // (down * across))
    around = pad(around.to(features.dtype), (0, 0) * 3 + (0, frames * down * across - N))
    tokens = around.view(B, frames, down, across, h, w, C).transpose(3, 4).reshape(B, frames, down * h, across * w, C)
    tokens = pad(tokens, (0, 0, 0, W - across * w, 0, H - down * h))
    n = torch.arange(N, device=features.device)
    first = torch.stack([T + n // (down * across), n // across % down * h, n % across * w], -1)
    return torch.cat([features, tokens], 1), first + offset
