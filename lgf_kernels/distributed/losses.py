"""Losses of a video that is spread over processes: each gets its share, and the sum of all shares is the loss of the whole."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import checks
from ..core.autograd import check_where_readable
from ..core.numerics import accumulate_dtype, relative_weight
from ..gram_flow.api import lgf_kl_loss_from_logits
from ..gram_flow.options import checked_window
from ..patch_cosine.api import patch_cosine_loss
from ..point_correspondence.api import point_correspondence_loss
from ..point_correspondence.distance import used_weight
from ..point_correspondence.options import queries_inside
from ..point_correspondence.sampling import add_at_corners, corners_of, sampled
from ..token_relation.api import token_relation_loss
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
        token_weight: `(B, *shards.queries(rank, direction))` of its own queries, or None.
        reduction: "mean" (default), over the weights of all processes, or "sum".
        group: of processes; the default group if None. All of them must make the call and its backward, those without
            queries, too.
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
    radius = checked_window(here, window) // 2
    checks.choice(
        here, "direction", direction, ("forward", "backward"), 'For "both", add the losses of either direction, halved.'
    )
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    _must_have_shape(here, "student", student, (None, *shards.part(rank), None), "(B, *shards.part(rank), C)")
    queries = (len(student), *shards.queries(rank, direction))
    teachers, names = checks.teacher_list(here, "teacher_logits", teacher_logits)
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
        teacher: the same frames, which are gathered, or those of the whole video (B, F, ...), as a cache holds them.
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
    for name, value, expected in (("student", student, (part,)), ("teacher", teacher, (part, frames))):
        if value.ndim < 3 or value.shape[1] not in expected:
            raise ValueError(
                f"{here}: `{name}` must have {' or '.join(map(str, expected))} frames in its second dimension, got the shape "
                f"{tuple(value.shape)}. shards.bounds is {shards.bounds} and this is process {rank}."
            )
    whole = gather(student, 1, shards.bounds, group)
    if teacher.shape[1] != frames:
        teacher = gather(teacher, 1, shards.bounds, group)
    mine = (pair_owners(shards) == rank).to(pair_weight.device)
    return token_relation_loss(whole, teacher, pair_weight=pair_weight * mine, reduction=reduction, **options)


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

    The features at the queries, N vectors for each video, are sampled where their frames are and given to all; each
    process then looks for all points in its own frames. What to sum is said at `sharded_lgf_kl_loss`.

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
    _must_have_shape(here, "features", features, (None, *shards.part(rank), None), "(B, frames, H, W, C)")
    T, N = shards.size, queries.shape[1]
    shape = (len(features), N, T)
    _must_have_shape(here, "queries", queries, (*shape[:2], 3), "(B, N, 3)")
    _must_have_shape(here, "targets", targets, (*shape, 2), "(B, N, T, 2)")
    dtype = accumulate_dtype(features)
    if weight is not None:
        _must_have_shape(here, "weight", weight, shape, "(B, N, T)")
        checks.real(here, "weight", weight)
        check_where_readable(checks.nonnegative, here, "weight", weight)
    queries_inside(here, queries, features.new_empty((1, *shards.grid, 1), device="meta"))
    frame = queries[..., 0]
    weight = used_weight(queries, weight, T, dtype, reduction)

    lo, hi = shards.own(rank)
    here_is = (frame >= lo) & (frame < hi)
    if rank == 0:  # what is in no frame at all becomes NaN here
        here_is |= (frame < 0) | (frame >= T)
    local = queries.clone()
    local[..., 0] -= lo
    found = AllReduce.apply(_SampledHere.apply(features, local, here_is), group)
    share = found[..., :0].sum() + features[..., :0].sum(dtype=dtype)
    if hi > lo and N:
        canvas, places = _with_points(features, found)
        frames = canvas.shape[1] - (hi - lo)
        share = share + point_correspondence_loss(
            canvas,
            places,
            torch.nn.functional.pad(targets[:, :, lo:hi], (0, 0, 0, frames)),
            torch.nn.functional.pad(weight[:, :, lo:hi], (0, frames)),
            reduction="sum",
            **options,
        )
    return share if reduction == "sum" else share / weight.sum()


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
        token_weight: of its tokens, or None.
        reduction: "mean" (default), over the weights of all processes, or "sum".
        group: as in `sharded_lgf_kl_loss`.
        options: teacher_weights, frame_weight (the rows of its frames) and backend of `patch_cosine_loss`.

    Raises:
        TypeError, ValueError: an argument is wrong. RuntimeError: there is no process group, or a process of it is gone.
    """
    here = "sharded_patch_cosine_loss"
    ranks_of(here, group)
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    dtype = accumulate_dtype(checks.tensor(here, "student", student))
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
    """The features (B, N, C) at the queries whose frame is here, 0 for the others; the gradient as `point_correspondence`'s."""

    @staticmethod
    def forward(ctx, features, queries, here_is):
        ctx.shape, ctx.dtype = features.shape, features.dtype
        ctx.save_for_backward(queries, here_is)
        if features.numel() == 0:
            return features.new_zeros((*queries.shape[:2], features.shape[-1]), dtype=accumulate_dtype(features))
        corners = corners_of(_somewhere(queries, here_is), features.shape, accumulate_dtype(features))
        return torch.where(here_is[..., None], sampled(features, corners), 0)

    @staticmethod
    def backward(ctx, grad):
        queries, here_is = ctx.saved_tensors
        gradient = grad.new_zeros(ctx.shape)
        if gradient.numel():
            corners = corners_of(_somewhere(queries, here_is), ctx.shape, grad.dtype)
            add_at_corners(gradient, corners, torch.where(here_is[..., None], grad, 0))
        return gradient.to(ctx.dtype), None, None


def _somewhere(queries: Tensor, here_is: Tensor) -> Tensor:
    """Return the queries, with those that are not here at the first token."""
    return torch.where(here_is[..., None], queries, 0)


def _with_points(features: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Append frames whose tokens are the vectors (B, N, C) to features (B, T, H, W, C); return these and queries on the tokens."""
    B, T, H, W, C = features.shape
    N = found.shape[1]
    frames = -(-N // (H * W))
    tokens = torch.nn.functional.pad(found.to(features.dtype), (0, 0, 0, frames * H * W - N))
    canvas = torch.cat([features, tokens.view(B, frames, H, W, C)], 1)
    n = torch.arange(N, device=features.device)
    places = torch.stack([T + n // (H * W), n % (H * W) // W, n % W], -1)
    return canvas, places.expand(B, N, 3)


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


def _must_have_shape(function: str, name: str, value, shape: tuple, layout: str) -> None:
    checks.tensor(function, name, value)
    if value.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, value.shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{function}: `{name}` must have the shape {layout} = ({expected}), got {tuple(value.shape)}.")
