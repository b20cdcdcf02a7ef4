"""Token relations over shards: the student travels, and each pair of parts is computed once."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import checks
from ..core.autograd import check_where_readable
from ..token_relation.api import token_relation_loss
from ..token_relation.options import checked_options
from .checks import check_options, checked_rank
from .exchange import gather
from .shards import Frames


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
    rank = checked_rank(here, shards, group, Frames)
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
    check_options(here, options, ("margin", "distance", "negatives", "similarity"), ("backend",), checked_options)
    checks.choice(here, "reduction", reduction, checks.REDUCTIONS)
    checks.relation_features(here, student.new_empty((len(student), max(part, 1), *student.shape[2:]), device="meta"))
    checks.weight_tensor(here, "pair_weight", pair_weight, student, (frames, frames), "(F, F)")
    check_where_readable(checks.nonnegative, here, "pair_weight", pair_weight)
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
