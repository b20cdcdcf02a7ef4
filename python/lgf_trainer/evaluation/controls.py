"""Controls of motion that is read from features: does it notice what was done to the video?

A video is changed in a way that is known (`data.transforms`), and its motion is read again:

    shuffle   2 x 2 x 2 blocks change places: the pair of frames where blocks meet has no motion to be read
    speed     twice as fast: of every token, the motion over two frames, as far as the window reaches
    inpaint   three frames in ten are black: the pairs with one of them have no motion to be read
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..data.flow import chained
from ..data.transforms import cube_inpaint, speed, tube_shuffle
from .motion import READABLE, certainty

FACTOR = 2
#: Of a video, so that every control leaves pairs of either kind.
LEAST_FRAMES = 8


class Changed(NamedTuple):
    """A changed video, and which of its pairs of frames have lost their motion, (pairs,) bool."""

    video: Tensor
    lost: Tensor


def shuffled(video: Tensor) -> Changed:
    changed, _ = tube_shuffle(video, generator=Generator().manual_seed(0))
    lost = torch.zeros(len(video) - 1, dtype=torch.bool)
    lost[len(video) // 2 - 1] = True
    if len(video) % 2:  # the last frame stays where it is, behind another block
        lost[-1] = True
    return Changed(changed, lost)


def faster(video: Tensor) -> Changed:
    changed = speed(video, FACTOR, keep_length=True)[: (len(video) + 1) // FACTOR]
    return Changed(changed, torch.zeros(len(changed) - 1, dtype=torch.bool))


def inpainted(video: Tensor) -> Changed:
    changed, mask = cube_inpaint(video, generator=Generator().manual_seed(0))
    return Changed(changed, mask[1:] | mask[:-1])


CONTROLS: dict[str, Callable[[Tensor], Changed]] = {"shuffle": shuffled, "speed": faster, "inpaint": inpainted}


class Reading(NamedTuple):
    """What was read of a video: logits (pairs, H, W, K * K) and motion (pairs, H, W, 2) in tokens."""

    logits: Tensor
    motion: Tensor


def verdict(name: str, before: Reading, after: Reading, lost: Tensor, window: int) -> str:
    """Return one line that says what was expected of a control and what was read."""
    if name == "speed":
        return speed_verdict(before, after, window)
    was, torn, rest = (
        certainty(logits, window).mean().item() for logits in (before.logits, after.logits[lost], after.logits[~lost])
    )
    where = "where blocks meet" if name == "shuffle" else "with a black frame"
    return (
        f"control {name}: certainty {torn:.0%} in pairs of frames {where}, {rest:.0%} in the others, {was:.0%} before"
    )


def speed_verdict(before: Reading, after: Reading, window: int) -> str:
    """Return how much more motion there is in the fast video, and how much the slow one lets expect.

    That is twice as much only where motion is even. Things speed up, slow down and turn round, and those that were chosen
    because they move do so less in the next frame: each token is followed over both frames that a fast one stands for.
    """
    fast = after.motion.norm(dim=-1)
    first, second = (before.motion[k : FACTOR * len(fast) : FACTOR] for k in range(FACTOR))
    both = torch.stack([_way_over(*pair) for pair in zip(first, second, strict=True)]).norm(dim=-1)
    slow, reach = first.norm(dim=-1), window // 2
    # Only tokens whose motion can be read and, doubled or as it goes on, is still within the window's reach.
    sure = certainty(before.logits[: FACTOR * len(fast) : FACTOR], window) >= READABLE
    moving = sure & (slow > 0.5) & (slow < reach / FACTOR) & (both < reach)
    if not moving.any():
        return f"control speed: nothing moves by 0.5 to {reach / FACTOR:g} tokens a frame, so nothing can be compared"
    found, expected = (motion[moving].mean() / slow[moving].mean() for motion in (fast, both))
    return (
        f"control speed: {found:.2f} times the motion, {expected:.2f} expected of the tokens followed over two frames "
        f"({FACTOR} if they moved evenly)"
    )


def _way_over(first: Tensor, second: Tensor) -> Tensor:
    """Return the motion (H, W, 2) over two pairs of frames."""
    flows = (motion.flip(-1).permute(2, 0, 1) for motion in (first, second))
    return chained(*flows).permute(1, 2, 0).flip(-1)
