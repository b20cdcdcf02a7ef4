"""Checks of the losses over shards, made before anything travels, so that all processes refuse alike."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..core import checks
from ..core.registry import checked_backend
from .exchange import ranks_of
from .shards import Shards

REDUCTIONS = ("mean", "sum")


def checked_rank(function: str, shards: Shards, group, kind: type = Shards) -> int:
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


def check_options(function: str, options: dict[str, Any], checked, others, check: Callable | None = None) -> None:
    """Check options before anything travels: all processes then refuse them alike, those without tokens, too."""
    for name in options:
        if name not in (*checked, *others):
            known = ", ".join((*checked, *others))
            raise TypeError(f"{function}: there is no option `{name}` of parts. There are {known}: leave it out.")
    if check is not None:
        check(function, **{name: value for name, value in options.items() if name in checked})
    checked_backend(options.get("backend"), function)


def must_have_pairs(function: str, shards: Shards) -> None:
    if shards.grid[0] < 2:
        raise ValueError(
            f"{function}: `shards` must have at least 2 frames, because the loss compares each frame with others; got the grid "
            f"{shards.grid}. A single image has no such loss: leave it out."
        )


def must_be_part(function: str, name: str, value, part: tuple[int, ...], layout: str) -> None:
    """Check a process's features (B, *part, C). Its part alone may be empty."""
    must_have_shape(function, name, value, (None, *part, None), layout)
    checks.floating(function, name, value)
    if 0 in (value.shape[0], value.shape[-1]):
        raise ValueError(
            f"{function}: `{name}` must have at least one video and one channel, in a process without tokens, too; got "
            f"{tuple(value.shape)}. Make it with {name}.new_empty((B, *shards.part(rank), C)) there."
        )


def must_have_shape(function: str, name: str, value, shape: tuple, layout: str) -> None:
    checks.tensor(function, name, value)
    if value.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, value.shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{function}: `{name}` must have the shape {layout} = ({expected}), got {tuple(value.shape)}.")


def must_be_constant(function: str, name: str, value, shape: tuple, layout: str, student_name: str, student) -> None:
    """Check a real tensor without gradient next to the student, of which a process may hold nothing."""
    must_have_shape(function, name, value, shape, layout)
    checks.real(function, name, value)
    checks.same_device(function, name, value, student_name, student)
    checks.detached(function, name, value)


def with_tokens(argument):
    """Return an argument in which every empty tensor has one place where it had none, and no values.

    With it a process that holds nothing makes the checks of the others, which would refuse and leave it waiting.
    """
    if isinstance(argument, Sequence) and not isinstance(argument, str):
        return [with_tokens(each) for each in argument]
    if not isinstance(argument, Tensor) or argument.numel():
        return argument
    sizes = [max(size, 1) for size in argument.shape]
    return argument.new_empty(()).expand(sizes).requires_grad_(argument.requires_grad)
