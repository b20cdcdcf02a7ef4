"""The options of point correspondence, checked once and carried whole, and the checks that only this family needs."""

from typing import NamedTuple

from torch import Tensor

from ..core.checks import REDUCTIONS, choice, detached, integer, real, same_device, scale, tensor

DISTANCES = ("huber", "l1")

#: Tokens of a frame, at most, for a window: the place of the maximum is kept as a number of float32, exact up to here.
MOST_TOKENS = 2**24


class PointOptions(NamedTuple):
    """Everything of a loss that is not a tensor. The meanings are those of `lgf_kernels.point_correspondence_loss`."""

    temperature: float = 0.05
    window: int | None = None
    distance: str = "huber"
    delta: float = 1.0
    reduction: str = "mean"


def checked_window(function: str, value) -> int | None:
    if value is None:
        return None
    window = integer(function, "window", value)
    if window < 1:
        raise ValueError(
            f"{function}: `window` must be at least 1, the tokens on each side of the best match, or None for a softmax over "
            f"the whole frame; got {value!r}."
        )
    return min(window, MOST_TOKENS)  # covers every frame, and fits the integers of the operators


def checked_options(function: str, **given) -> PointOptions:
    """The options of a point correspondence operator; those not given keep their defaults."""
    tests = {
        "temperature": lambda v: scale(function, "temperature", v),
        "window": lambda v: checked_window(function, v),
        "distance": lambda v: choice(function, "distance", v, DISTANCES),
        "delta": lambda v: scale(function, "delta", v),
        "reduction": lambda v: choice(function, "reduction", v, REDUCTIONS),
    }
    return PointOptions(**{name: tests[name](value) for name, value in given.items()})


def constant(function: str, name: str, value, features: Tensor, shape: tuple, layout: str, way_out: str) -> Tensor:
    """A real tensor without gradient next to the features; a `None` in the shape stands for any size."""
    tensor(function, name, value)
    real(function, name, value)
    same_device(function, name, value, "features", features)
    detached(function, name, value)
    matches = value.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not matches:
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        given = ", ".join(map(str, value.shape))
        raise ValueError(f"{function}: `{name}` must have shape {layout} = ({expected}), got ({given}). {way_out}")
    return value


def small_frames(function: str, features: Tensor, window: int | None) -> None:
    """Refuse frames whose best match would not be kept exactly."""
    if window is not None and features.shape[2] * features.shape[3] > MOST_TOKENS:
        raise ValueError(
            f"{function}: with a `window`, a frame must have at most 2^24 tokens; got {tuple(features.shape[2:4])} in "
            f"`features`. Use window=None, or a coarser grid."
        )


def queries_inside(function: str, queries: Tensor, features: Tensor) -> None:
    """Refuse queries outside the video, where reading them makes no host wait for a device."""
    if queries.device.type != "cpu" or queries.numel() == 0:
        return
    _, T, H, W, _ = features.shape
    t, y, x = queries.double().unbind(-1)
    tests = {
        f"t must be a whole number from 0 to {T - 1}, the frame of the query": (t == t.floor()) & (t >= 0) & (t < T),
        f"y must be from 0 to {H - 1}": (y >= 0) & (y <= H - 1),
        f"x must be from 0 to {W - 1}": (x >= 0) & (x <= W - 1),
    }
    for rule, right in tests.items():
        if bool(right.all()):
            continue
        b, n = (~right).nonzero()[0].tolist()
        given = ", ".join(f"{number:g}" for number in queries[b, n].tolist())
        raise ValueError(
            f"{function}: `queries` must be points (t, y, x) of the video: {rule}; queries[{b}, {n}] is ({given}). Give token "
            "coordinates, whose centres are whole numbers: (pixel + 0.5) / 16 - 0.5 for tokens of 16 pixels."
        )
