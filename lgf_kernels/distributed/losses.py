"""Losses of a video that is spread over processes: each gets its share, and the sum of all shares is the loss of the whole."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..core import checks
from ..core.autograd import check_where_readable
from ..core.numerics import accumulate_dtype, relative_weight
from ..core.registry import checked_backend
from ..gram_flow.api import lgf_kl_loss_from_logits
from ..gram_flow.options import checked_options as flow_options
from ..patch_cosine.api import patch_cosine_loss
from ..point_correspondence.api import point_correspondence_loss
from ..point_correspondence.distance import used_weight
from ..point_correspondence.options import checked_options as point_options
from ..point_correspondence.options import queries_inside
from ..point_correspondence.sampling import add_at_corners, corners_of, sampled
from ..token_relation.api import token_relation_loss
from ..token_relation.options import checked_options as relation_options
from .exchange import AllReduce, gather, halo_exchange, largest_of_all, ranks_of, summed
from .shards import Frames, Shards

REDUCTIONS = ("mean", "sum")


def sharded_lgf_kl_loss(
    student: Tensor,
    teacher_logits: Tensor | Sequence[Tensor],
    shards: Shards,
    *,
    window: int = 7,
    direction: str = "forward",
    token_weight: Tensor | None = None,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    **options,
) -> Tensor:
    r"""Return this process's share of `lgf_kl_loss_from_logits` of a video that is spread over the processes of a group.

    The share is the sum of the process's own queries over the weight of all, so that::

        loss of the whole    = sum of the shares over the group
        gradient of a weight = sum of its gradients over the group, where all processes have that weight

    Sum gradients, do not average them: DistributedDataParallel averages, so let each process call backward on its share
    times the size of the group, or reduce by hand. Only borders of the student travel, and their gradients back. Borders have
    weight 0, and `lgf_kl_loss` says what of such tokens is skipped; docs/distributed.md counts what is left.

    Args:
        student: this process's part, of the shape `(B, *shards.part(rank), C)`, of any type that `lgf_kl_loss` takes.
        teacher_logits: of its own queries, in the loss's direction: `(B, *shards.queries(rank, direction), window * window)`;
            one tensor or a sequence, as in `lgf_kl_loss_from_logits`. They are not sent anywhere.
        shards: `Frames`, `Rows` or `Tokens`, the same in all processes.
        window: K, odd.
        direction: "forward" (default) or "backward". For both, call it for each, with a cache for each.
        token_weight: `(B, *shards.queries(rank, direction))` of its own queries, of one type in all processes; or None in all.
        reduction: "mean" (default), over the weights of all processes, or "sum".
        group: of processes; the default group if None. All of them must make the call and its backward, in the same order
            as other calls, those without queries, too.
        options: teacher_weights, temperature, similarity, boundary, divergence and backend of `lgf_kl_loss_from_logits`.

    Returns:
        A scalar in float32 (float64 for a float64 student).

    Raises:
        TypeError, ValueError: an argument is wrong. RuntimeError: there is no process group, or a process of it is gone.

    Example (in each of several processes)::

        shards = Frames.even((13, 30, 45), ranks=torch.distributed.get_world_size())
        share = sharded_lgf_kl_loss(features, cached_logits, shards)
        share.backward()
    """
    here = "sharded_lgf_kl_loss"
    rank = _rank(here, shards, group)
    checks.choice(
        here, "direction", direction, ("forward", "backward"), 'For "both", add the losses of either direction, halved.'
    )
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    of_flow = ("temperature", "similarity", "boundary", "divergence")
    _check_options(here, options, of_flow, ("teacher_weights", "backend"), flow_options)
    radius = flow_options(here, window=window).radius
    _must_have_pairs(here, shards)
    _must_be_part(here, "student", student, shards.part(rank), "(B, *shards.part(rank), C)")
    queries = (len(student), *shards.queries(rank, direction))
    teachers, names = checks.teacher_list(here, "teacher_logits", teacher_logits)
    checks.teacher_weights(here, options.get("teacher_weights"), len(teachers))
    for name, logits in zip(names, teachers, strict=True):
        _must_have_shape(
            here, name, logits, (*queries, window**2), "(B, *shards.queries(rank, direction), window * window)"
        )
    if token_weight is not None:
        _must_have_shape(here, "token_weight", token_weight, queries, "(B, *shards.queries(rank, direction))")

    dtype = accumulate_dtype(student)
    token_weight = _shared_weight(here, token_weight, dtype, reduction, group)
    own = [shards.own(other) for other in range(shards.ranks)]
    needed = [shards.needed(other, radius, direction) for other in range(shards.ranks)]
    part = halo_exchange(student, shards.dim, own, needed, group)
    share = part[..., :0].sum(dtype=dtype)  # 0, whose backward makes the exchange that other processes wait for
    if all(queries):
        weight = part.new_ones(queries, dtype=dtype) if token_weight is None else token_weight
        where = (rank, radius, direction)
        share = share + lgf_kl_loss_from_logits(
            shards.canvas(part, *where),
            [shards.on_canvas(logits, *where) for logits in teachers],
            window=window,
            direction=direction,
            token_weight=shards.on_canvas(weight[..., None], *where)[..., 0],
            reduction="sum",
            **options,
        )
    if reduction == "sum":
        return share
    if token_weight is None:
        T, H, W = shards.grid
        return share / (len(student) * (T - 1) * H * W)
    return share / summed(token_weight.sum(), group)


def sharded_token_relation_loss(
    student: Tensor,
    teacher: Tensor,
    shards: Frames,
    *,
    pair_weight: Tensor,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    **options,
) -> Tensor:
    """Return this process's share of `token_relation_loss` of a video whose frames are spread over the processes of a group.

    Every process gathers the student, and computes the pairs of frames that are its own: of each unordered pair of parts
    one of the two, alternately, so that all have as much to do. Frame pairs of weight 0 cost nothing. What to sum is said
    at `sharded_lgf_kl_loss`.

    Args:
        student: its frames, (B, frames, H, W, C) or (B, frames, N, C).
        teacher: the same frames, which are gathered, or in all processes those of the whole video (B, F, ...), as a cache holds
            them.
        shards: `Frames`; of its grid only the number of frames is read.
        pair_weight: (F, F) of the whole video, the same in all processes.
        reduction: as in `token_relation_loss`; "none" gives the shares (B,) of each video's loss.
        group: as in `sharded_lgf_kl_loss`.
        options: margin, distance, negatives, similarity and backend of `token_relation_loss`.

    Raises:
        TypeError, ValueError: an argument is wrong. RuntimeError: there is no process group, or a process of it is gone.
    """
    here = "sharded_token_relation_loss"
    rank = _rank(here, shards, group, Frames)
    frames, part = shards.size, shards.part(rank)[0]
    checks.tensor(here, "student", student)
    checks.tensor(here, "teacher", teacher)
    for name, value, expected in (("student", student, {part}), ("teacher", teacher, {part, frames})):
        if value.ndim < 3 or value.shape[1] not in expected:
            wanted = " or ".join(map(str, sorted(expected)))
            raise ValueError(
                f"{here}: `{name}` must have {wanted} frames in its second dimension, got the shape {tuple(value.shape)}. "
                f"shards.bounds is {shards.bounds} and this is process {rank}."
            )
    _check_options(here, options, ("margin", "distance", "negatives", "similarity"), ("backend",), relation_options)
    checks.choice(here, "reduction", reduction, checks.REDUCTIONS)
    checks.relation_features(here, student.new_empty((len(student), max(part, 1), *student.shape[2:]), device="meta"))
    checks.weight_tensor(here, "pair_weight", pair_weight, student, (frames, frames), "(F, F)")
    whole = gather(student, 1, shards.bounds, group)
    if teacher.shape[1] != frames:
        teacher = _whole_teacher(teacher, shards, group)
    mine = (pair_owners(shards) == rank).to(pair_weight.device)
    return token_relation_loss(whole, teacher, pair_weight=pair_weight * mine, reduction=reduction, **options)


def _whole_teacher(teacher: Tensor, shards: Frames, group) -> Tensor:
    """Gather a teacher. A process with all frames sees no part in them and gathers nothing: it has all pairs, others need none."""
    if shards.size in torch.tensor(shards.bounds).diff():
        return teacher.new_zeros((len(teacher), shards.size, *teacher.shape[2:]))
    return gather(teacher, 1, shards.bounds, group)


def pair_owners(shards: Frames) -> Tensor:
    """Return which process computes each pair of frames, (F, F), symmetric.

    Of two processes i and j it is i if j is among the next half of the ring after i, else j.
    """
    P = shards.ranks
    sizes = torch.tensor(shards.bounds).diff()
    owner = torch.arange(P).repeat_interleave(sizes)
    i, j = owner[:, None], owner[None, :]
    ahead = (j - i) % P
    is_first = (ahead < P / 2) | ((ahead == P / 2) & (i < j))
    return torch.where(is_first, i, j)


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
    rank = _rank(here, shards, group, Frames)
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    _check_options(here, options, ("temperature", "distance", "delta", "window"), ("backend",), point_options)
    _must_have_pairs(here, shards)
    _must_be_part(here, "features", features, shards.part(rank), "(B, frames, H, W, C)")
    B, T = len(features), shards.size
    _must_have_shape(here, "queries", queries, (B, None, 3), "(B, N, 3)")
    N = queries.shape[1]
    _must_have_shape(here, "targets", targets, (B, N, T, 2), "(B, N, T, 2)")
    for name, value in {"queries": queries, "targets": targets}.items():
        checks.real(here, name, value)
    dtype = accumulate_dtype(features)
    if weight is not None:
        _must_have_shape(here, "weight", weight, (B, N, T), "(B, N, T)")
        checks.real(here, "weight", weight)
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


def sharded_patch_cosine_loss(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    *,
    token_weight: Tensor | None = None,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    **options,
) -> Tensor:
    """Return this process's share of `patch_cosine_loss` of tokens that are spread over the processes of a group in any way.

    Tokens are compared each for itself, so nothing travels but the sum of the weights and the largest. What to sum is said at
    `sharded_lgf_kl_loss`.

    Args:
        student: its tokens, (..., C); there may be none.
        teachers: at the same tokens. With `frame_weight`, those of all frames.
        token_weight: of its tokens, of one type in all processes; or None in all.
        reduction: "mean" (default), over the weights of all processes, or "sum".
        group: as in `sharded_lgf_kl_loss`.
        options: teacher_weights, frame_weight (the rows of its frames) and backend of `patch_cosine_loss`.

    Raises:
        TypeError, ValueError: an argument is wrong. RuntimeError: there is no process group, or a process of it is gone.
    """
    here = "sharded_patch_cosine_loss"
    ranks_of(here, group)
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    checks.floating(here, "student", checks.tensor(here, "student", student))
    _check_options(here, options, (), ("teacher_weights", "frame_weight", "backend"))
    dtype = accumulate_dtype(student)
    token_weight = _shared_weight(here, token_weight, dtype, reduction, group)
    if student.numel():
        share = patch_cosine_loss(student, teachers, token_weight=token_weight, reduction="sum", **options)
    else:
        share = student.sum(dtype=dtype)
    if reduction == "sum":
        return share
    ones = student.new_ones(student.shape[:-1], dtype=dtype)
    return share / summed((ones if token_weight is None else token_weight).sum(), group)


def _shared_weight(function: str, token_weight, dtype: torch.dtype, reduction: str, group) -> Tensor | None:
    """Return the weights of this process's tokens as the losses use them, relative to the largest of all processes."""
    if token_weight is None:
        return None
    checks.real(function, "token_weight", checks.tensor(function, "token_weight", token_weight))
    check_where_readable(checks.nonnegative, function, "token_weight", token_weight)
    return relative_weight(token_weight, dtype, reduction, lambda weight: largest_of_all(weight, group))


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


def _rank(function: str, shards: Shards, group, kind: type = Shards) -> int:
    """Return this process's rank, after a check of the shards against the group."""
    if not isinstance(shards, kind):
        raise TypeError(
            f"{function}: `shards` must be {'Frames, Rows or Tokens' if kind is Shards else kind.__name__} of "
            f"lgf_kernels.distributed, got {type(shards).__name__}."
        )
    rank, ranks = ranks_of(function, group)
    if shards.ranks != ranks:
        raise ValueError(
            f"{function}: `shards` has {shards.ranks} parts, and the group {ranks} processes. "
            f"Make it with {type(shards).__name__}.even(grid, ranks={ranks})."
        )
    return rank


def _check_options(function: str, options: dict[str, Any], checked, others, check: Callable | None = None) -> None:
    """Check options before anything travels: all processes then refuse them alike, those without tokens, too."""
    for name in options:
        if name not in (*checked, *others):
            known = ", ".join((*checked, *others))
            raise TypeError(f"{function}: there is no option `{name}` of parts. There are {known}: leave it out.")
    if check is not None:
        check(function, **{name: value for name, value in options.items() if name in checked})
    checked_backend(options.get("backend"), function)


def _must_have_pairs(function: str, shards: Shards) -> None:
    if shards.grid[0] < 2:
        raise ValueError(
            f"{function}: `shards` must have at least 2 frames, because the loss compares each frame with others; got the grid "
            f"{shards.grid}. A single image has no such loss: leave it out."
        )


def _must_be_part(function: str, name: str, value, part: tuple[int, ...], layout: str) -> None:
    """Check a process's features (B, *part, C). Its part alone may be empty."""
    _must_have_shape(function, name, value, (None, *part, None), layout)
    checks.floating(function, name, value)
    if 0 in (value.shape[0], value.shape[-1]):
        raise ValueError(
            f"{function}: `{name}` must have at least one video and one channel, in a process without tokens, too; got "
            f"{tuple(value.shape)}. Make it with {name}.new_empty((B, *shards.part(rank), C)) there."
        )


def _must_have_shape(function: str, name: str, value, shape: tuple, layout: str) -> None:
    checks.tensor(function, name, value)
    if value.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, value.shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{function}: `{name}` must have the shape {layout} = ({expected}), got {tuple(value.shape)}.")
