"""Local Gram Flow over shards: borders travel."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from ..core import checks
from ..core.numerics import accumulate_dtype
from ..gram_flow.api import lgf_kl_loss_from_logits
from ..gram_flow.options import checked_options
from .checks import REDUCTIONS, check_options, checked_rank, must_be_constant, must_be_part, must_have_pairs
from .exchange import halo_exchange, summed
from .shards import Shards
from .weights import shared_weight


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
    rank = checked_rank(here, shards, group)
    checks.choice(
        here, "direction", direction, ("forward", "backward"), 'For "both", add the losses of either direction, halved.'
    )
    checks.choice(here, "reduction", reduction, REDUCTIONS)
    of_flow = ("temperature", "similarity", "boundary", "divergence")
    check_options(here, options, of_flow, ("teacher_weights", "backend"), checked_options)
    radius = checked_options(here, window=window).radius
    must_have_pairs(here, shards)
    must_be_part(here, "student", student, shards.part(rank), "(B, *shards.part(rank), C)")
    queries = (len(student), *shards.queries(rank, direction))
    teachers, names = checks.teacher_list(here, "teacher_logits", teacher_logits)
    checks.teacher_weights(here, options.get("teacher_weights"), len(teachers))
    for name, logits in zip(names, teachers, strict=True):
        layout = "(B, *shards.queries(rank, direction), window * window)"
        must_be_constant(here, name, logits, (*queries, window**2), layout, "student", student)
        checks.floating(here, name, logits)
    if token_weight is not None:
        layout = "(B, *shards.queries(rank, direction))"
        must_be_constant(here, "token_weight", token_weight, queries, layout, "student", student)

    dtype = accumulate_dtype(student)
    token_weight = shared_weight(here, token_weight, dtype, reduction, group)
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
