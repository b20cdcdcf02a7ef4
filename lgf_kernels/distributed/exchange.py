"""Exchange of parts of a tensor between the processes that hold it, with a gradient.

What is sent to whom follows from bounds that every process knows, so there is no handshake. Gradients travel the same ways
back and are added in the order of the processes, in the accumulation type: two runs are equal to the bit.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core import checks
from ..core.numerics import accumulate_dtype, largest_of
from .shards import integers

Range = tuple[int, int]


def ranks_of(function: str, group) -> tuple[int, int]:
    """Return this process's rank in the group, and the number of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{function}: there is no process group. Start the program with torchrun and call "
            "torch.distributed.init_process_group() first."
        )
    if not (group is None or isinstance(group, dist.ProcessGroup) or group == dist.GroupMember.NON_GROUP_MEMBER):
        raise TypeError(
            f"{function}: `group` must be a process group or None, got {type(group).__name__}. Make it with "
            "torch.distributed.new_group(ranks); a DeviceMesh has get_group(name)."
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"{function}: this process does not belong to `group`. Call it in the processes of the group alone."
        )
    return rank, dist.get_world_size(group)


def halo_exchange(
    tensor: Tensor, dim: int, have: Sequence[Range], need: Sequence[Range], group: dist.ProcessGroup | None = None
) -> Tensor:
    """Extend a part of a tensor by what other processes hold of it.

    Args:
        tensor: this process's part of a whole that is cut along `dim`: places `have[rank]`.
        dim: the dimension that is cut.
        have: for each process of the group, the range [lo, hi) of places it holds; the same list everywhere.
        need: for each process, the range that it gets; inside of what all together hold. It may be wider than neighbours
            have, or empty.
        group: of processes; the default group if None. All of its processes must make the call, and its backward, in the
            same order as other calls.

    Returns:
        The places `need[rank]`. Its gradient goes back to the processes that hold them, added in the order of ranks.

    Raises:
        ValueError: ranges do not fit each other or the tensor.
        RuntimeError: there is no process group, or a process of it is gone.

    Example (two processes hold two rows each, and both want all four)::

        whole = halo_exchange(rows, 0, have=[(0, 2), (2, 4)], need=[(0, 4), (0, 4)])
    """
    here = "halo_exchange"
    rank, ranks = ranks_of(here, group)
    checks.tensor(here, "tensor", tensor)
    if not -tensor.ndim <= checks.integer(here, "dim", dim) < tensor.ndim:
        raise ValueError(f"{here}: `dim` must be a dimension of `tensor`, which has {tensor.ndim}, got {dim}.")
    have, need = _ranges(here, "have", have), _ranges(here, "need", need)
    if not len(have) == len(need) == ranks:
        raise ValueError(
            f"{here}: `have` and `need` must have a range for each of the group's {ranks} processes, got {len(have)} and "
            f"{len(need)}."
        )
    lo, hi = have[rank]
    if tensor.shape[dim] != hi - lo:
        raise ValueError(
            f"{here}: `tensor` has {tensor.shape[dim]} places in dimension {dim}, and have[{rank}] = {have[rank]} says {hi - lo}."
        )
    held = sorted(each for each in have if each[0] < each[1])
    if any(one[1] > other[0] for one, other in itertools.pairwise(held)):
        raise ValueError(f"{here}: the ranges of `have` must not overlap, got {have}.")
    for number, (lo, hi) in enumerate(need):
        if sum(max(0, min(hi, b) - max(lo, a)) for a, b in have) != max(hi - lo, 0):
            raise ValueError(f"{here}: need[{number}] = {(lo, hi)} is not all in what the processes have: {have}.")
    if tensor.device.type != "cpu" and anyone_idle(have, need):
        # NCCL connects a group at its first call, which all of its processes must make.
        summed(torch.zeros(1, device=tensor.device), group)
    return _Exchange.apply(tensor, dim, have, need, rank, group)


def _ranges(function: str, name: str, ranges: Sequence[Range]) -> list[Range]:
    found = [integers(function, name, each) for each in ranges] if isinstance(ranges, Iterable) else [()]
    if any(len(each) != 2 for each in found):
        raise ValueError(
            f"{function}: `{name}` must be pairs (lo, hi), one for each process, got {ranges!r}. For two processes with three "
            "places each: [(0, 3), (3, 6)]."
        )
    return found


def anyone_idle(have: list[Range], need: list[Range]) -> bool:
    """Return whether a process has nothing to send or receive."""
    busy = {
        rank
        for one, (lo, hi) in enumerate(need)
        for other, (a, b) in enumerate(have)
        if one != other and max(a, lo) < min(b, hi)
        for rank in (one, other)
    }
    return len(busy) < len(have)


def gather(tensor: Tensor, dim: int, bounds: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the whole of a tensor that is cut along `dim` at `bounds`; its gradient goes home and is summed.

    Args:
        tensor: this process's part, places [bounds[rank], bounds[rank + 1]).
        dim, group: as in `halo_exchange`.
        bounds: one more than there are processes, from 0 to the size of the whole.
    """
    ranks = ranks_of("gather", group)[1]
    bounds = integers("gather", "bounds", bounds)
    if len(bounds) != ranks + 1:
        raise ValueError(
            f"gather: `bounds` must be {ranks + 1} places for the group's {ranks} processes, got {bounds}. Give where each part "
            "begins, and the size of the whole."
        )
    have = list(itertools.pairwise(bounds))
    return halo_exchange(tensor, dim, have, [(bounds[0], bounds[-1])] * len(have), group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, dim, have, need, rank, group):
        ctx.dim, ctx.have, ctx.need, ctx.rank, ctx.group = dim, have, need, rank, group
        part = tensor.movedim(dim, 0)
        out = part.new_empty((max(need[rank][1] - need[rank][0], 0), *part.shape[1:]))
        for place, received in transfers(part, have, need, rank, group):
            out[place] = received
        return out.movedim(0, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        part = grad.movedim(ctx.dim, 0)
        lo, hi = ctx.have[ctx.rank]
        total = part.new_zeros((hi - lo, *part.shape[1:]), dtype=accumulate_dtype(part))
        for place, received in transfers(part, ctx.need, ctx.have, ctx.rank, ctx.group):
            total[place] += received
        return total.to(grad.dtype).movedim(0, ctx.dim), None, None, None, None, None


def transfers(part: Tensor, have: list[Range], want: list[Range], rank: int, group) -> Iterator[tuple[slice, Tensor]]:
    """Send what others want of this part, and yield what is received, by the order of ranks: where it belongs, and the values.

    The part is cut along its first dimension. Nothing is sent where nothing is wanted.
    """
    (mine_lo, mine_hi), (want_lo, want_hi) = have[rank], want[rank]
    received, work = [], []
    for other, ((lo, hi), (its_lo, its_hi)) in enumerate(zip(have, want, strict=True)):
        first, last = max(want_lo, lo), min(want_hi, hi)
        if first < last:
            place = slice(first - want_lo, last - want_lo)
            if other == rank:
                received.append((place, part[first - mine_lo : last - mine_lo]))
            else:
                buffer = part.new_empty((last - first, *part.shape[1:]))
                received.append((place, buffer))
                work.append(dist.P2POp(dist.irecv, buffer, _peer(group, other), group))
        first, last = max(its_lo, mine_lo), min(its_hi, mine_hi)
        if first < last and other != rank:
            values = part[first - mine_lo : last - mine_lo].contiguous()
            work.append(dist.P2POp(dist.isend, values, _peer(group, other), group))
    with explained():
        for request in dist.batch_isend_irecv(work) if work else ():
            request.wait()
    yield from received


@contextmanager
def explained() -> Iterator[None]:
    """Say what it means that the processes did not come together."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "lgf_kernels.distributed: an exchange with the other processes failed. One of them has ended, or has not made the "
            "same call within the timeout of the group, that of init_process_group or new_group; its own message says why. "
            f"({error})"
        ) from error


def _peer(group, rank: int) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


class AllReduce(torch.autograd.Function):
    """The sum over the processes, in forward and backward."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        return summed(tensor, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return summed(grad, ctx.group), None


def largest_of_all(weight: Tensor, group) -> Tensor:
    """Return the largest of the weights of all processes."""
    largest = largest_of(weight.detach()).clone()
    with explained():
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return largest


def summed(tensor: Tensor, group) -> Tensor:
    total = tensor.detach().clone()
    with explained():
        dist.all_reduce(total, group=group)
    return total
