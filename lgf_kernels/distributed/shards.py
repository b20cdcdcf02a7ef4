"""Ways in which the tokens of a video are spread over processes, and what Local Gram Flow needs beside each part.

A query in frame t compares itself with the window around it in frame t + 1 (for direction "backward", frame t). What of a
window another process holds is the halo of a part:

    Frames    whole frames              the next frame
    Rows      rows of all frames        the rows on each side that windows reach
    Tokens    a range of all tokens     the rest of the frame, and the window's reach into the next

The loss runs on a canvas of whole frames, or rows, that holds part and halo. What on it is no query of this process has
weight 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import pad

from ..core.checks import integer
from ..core.checks import size as checked_size

Range = tuple[int, int]


@dataclass(frozen=True)
class Shards:
    """A video of `grid` = (T, H, W) tokens, cut at `bounds`: process k has the places [bounds[k], bounds[k + 1]).

    Use `Frames`, `Rows` or `Tokens`. `bounds` goes from 0 to the size of what is cut; parts may be of different sizes, and
    empty. All processes must have the same.
    """

    grid: tuple[int, int, int]
    bounds: tuple[int, ...]

    dim: ClassVar[int]
    """The dimension of the student that is cut."""

    def __post_init__(self):
        name = type(self).__name__
        grid = _checked_grid(name, self.grid)
        bounds = integers(name, "bounds", self.bounds)
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "bounds", bounds)
        if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != self.size or list(bounds) != sorted(bounds):
            raise ValueError(
                f"{name}: `bounds` must ascend from 0 to {self.size}, the {name.lower()} of the whole, with one more than there "
                f"are processes; got {bounds}. {name}.even(grid, ranks) makes parts of equal size."
            )

    @classmethod
    def even(cls, grid: Sequence[int], ranks: int) -> "Shards":
        """Cut a video into parts as equal as possible, the larger ones first."""
        grid, ranks = _checked_grid(cls.__name__, grid), checked_size(cls.__name__, "ranks", ranks)
        size = cls.size_of(grid)
        return cls(grid, tuple(size // ranks * k + min(k, size % ranks) for k in range(ranks + 1)))

    @property
    def ranks(self) -> int:
        return len(self.bounds) - 1

    @property
    def size(self) -> int:
        return self.size_of(self.grid)

    def own(self, rank: int) -> Range:
        """Return the places of a process."""
        return self.bounds[rank], self.bounds[rank + 1]

    # Each kind says:

    @staticmethod
    def size_of(grid: tuple[int, int, int]) -> int:
        """Return the size of what is cut."""
        raise NotImplementedError

    def part(self, rank: int) -> tuple[int, ...]:
        """Return the shape of a process's part of the student, without batch and channels."""
        raise NotImplementedError

    def queries(self, rank: int, direction: str) -> tuple[int, ...]:
        """Return the shape of its queries, which is that of its cached logits and weights without batch and window."""
        raise NotImplementedError

    def needed(self, rank: int, radius: int, direction: str) -> Range:
        """Return the places that the windows of its queries reach, its own included."""
        raise NotImplementedError

    def canvas(self, part: Tensor, rank: int, radius: int, direction: str) -> Tensor:
        """Bring the needed places (B, ..., C) to (B, T, H, W, C)."""
        raise NotImplementedError

    def on_canvas(self, values: Tensor, rank: int, radius: int, direction: str) -> Tensor:
        """Bring values of the queries (B, ..., K) to the queries of the canvas (B, T - 1, H, W, K), 0 elsewhere."""
        raise NotImplementedError


def _checked_grid(function: str, grid: Sequence[int]) -> tuple[int, int, int]:
    sizes = integers(function, "grid", grid)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(
            f"{function}: `grid` must be three sizes of at least 1, frames, rows and columns; got {sizes}."
        )
    return sizes


def integers(function: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{function}: `{name}` must be a sequence of integers, got {type(values).__name__} {values!r}.")
    return tuple(integer(function, name, value) for value in values)


class Frames(Shards):
    """Whole frames: student (B, frames, H, W, C); a pair of frames belongs to the process with the first of them."""

    dim = 1

    @staticmethod
    def size_of(grid):
        return grid[0]

    def part(self, rank):
        lo, hi = self.own(rank)
        return hi - lo, *self.grid[1:]

    def queries(self, rank, direction):
        lo, hi = self.own(rank)
        return max(min(hi, self.grid[0] - 1) - lo, 0), *self.grid[1:]

    def needed(self, rank, radius, direction):
        lo, hi = self.own(rank)
        return lo, min(hi + 1, self.grid[0]) if lo < hi else hi

    def canvas(self, part, rank, radius, direction):
        return part

    def on_canvas(self, values, rank, radius, direction):
        return values


class Rows(Shards):
    """Rows of all frames: student (B, T, rows, W, C)."""

    dim = 2

    @staticmethod
    def size_of(grid):
        return grid[1]

    def part(self, rank):
        lo, hi = self.own(rank)
        return self.grid[0], hi - lo, self.grid[2]

    def queries(self, rank, direction):
        lo, hi = self.own(rank)
        return self.grid[0] - 1, hi - lo, self.grid[2]

    def needed(self, rank, radius, direction):
        lo, hi = self.own(rank)
        return (max(lo - radius, 0), min(hi + radius, self.grid[1])) if lo < hi else (lo, hi)

    def canvas(self, part, rank, radius, direction):
        return part

    def on_canvas(self, values, rank, radius, direction):
        (lo, hi), (first, last) = self.own(rank), self.needed(rank, radius, direction)
        return pad(values, (0, 0, 0, 0, lo - first, last - hi))


class Tokens(Shards):
    """A range of the tokens of all frames, frame after frame: student (B, tokens, C). This is how diffusers cuts sequences."""

    dim = 1

    @staticmethod
    def size_of(grid):
        return grid[0] * grid[1] * grid[2]

    @property
    def of_frame(self) -> int:
        return self.grid[1] * self.grid[2]

    def part(self, rank):
        lo, hi = self.own(rank)
        return (hi - lo,)

    def queries(self, rank, direction):
        lo, hi = self.query_range(rank, direction)
        return (hi - lo,)

    def query_range(self, rank: int, direction: str) -> Range:
        """Return which tokens of a process are queries: none in the last frame, for "backward" none in the first."""
        lo, hi = self.own(rank)
        first, last = (0, self.size - self.of_frame) if direction == "forward" else (self.of_frame, self.size)
        lo, hi = max(lo, first), min(hi, last)
        return (lo, hi) if lo < hi else (lo, lo)

    def frames(self, rank: int, direction: str) -> Range:
        """Return the frames of its queries and of their keys; none without queries."""
        lo, hi = self.query_range(rank, direction)
        if lo == hi:
            return 0, 0
        before = direction == "backward"
        return lo // self.of_frame - before, (hi - 1) // self.of_frame + 2 - before

    def needed(self, rank, radius, direction):
        (lo, hi), (start, stop) = self.query_range(rank, direction), self.frames(rank, direction)
        if lo == hi:
            return self.own(rank)
        reach = self.of_frame + radius * (self.grid[2] + 1)
        own_lo, own_hi = self.own(rank)
        if direction == "forward":
            return own_lo, max(min(hi + reach, stop * self.of_frame), own_hi)
        return min(max(lo - reach, start * self.of_frame), own_lo), own_hi

    def canvas(self, part, rank, radius, direction):
        (lo, hi), (start, stop) = self.needed(rank, radius, direction), self.frames(rank, direction)
        part = pad(part, (0, 0, lo - start * self.of_frame, stop * self.of_frame - hi))
        return part.unflatten(1, (stop - start, *self.grid[1:]))

    def on_canvas(self, values, rank, radius, direction):
        (lo, hi), (start, stop) = self.query_range(rank, direction), self.frames(rank, direction)
        first = (start + (direction == "backward")) * self.of_frame  # the frame of the queries of the first pair
        pairs = stop - start - 1
        values = pad(values, (0, 0, lo - first, first + pairs * self.of_frame - hi))
        return values.unflatten(1, (pairs, *self.grid[1:]))
