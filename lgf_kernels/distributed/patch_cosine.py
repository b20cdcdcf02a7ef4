"""Patch cosine over shards: nothing travels but weights."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from ..core import checks
from ..core.numerics import accumulate_dtype
from ..patch_cosine.api import checked_arguments, patch_cosine_loss
from .checks import REDUCTIONS, check_options, with_tokens
from .exchange import ranks_of, summed
from .weights import shared_weight


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
    check_options(here, options, (), ("teacher_weights", "frame_weight", "backend"))
    arguments = {"student": student, "teachers": teachers, "token_weight": token_weight} | options
    checked_arguments(here, **{name: with_tokens(it) for name, it in arguments.items() if name != "backend"})
    dtype = accumulate_dtype(student)
    token_weight = shared_weight(here, token_weight, dtype, reduction, group)
    if student.numel():
        share = patch_cosine_loss(student, teachers, token_weight=token_weight, reduction="sum", **options)
    else:
        share = student.sum(dtype=dtype)
    if reduction == "sum":
        return share
    ones = student.new_ones(student.shape[:-1], dtype=dtype)
    return share / summed((ones if token_weight is None else token_weight).sum(), group)
