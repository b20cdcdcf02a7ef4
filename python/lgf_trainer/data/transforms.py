"""Known changes of a video, with which to ask whether a measure of motion notices them: SAMA's three pretext transforms.

    tube_shuffle   blocks of frames, rows and columns change places: motion is wrong where blocks meet, right within
    speed          faster or slower: motion is so many times as large
    cube_inpaint   a few successive frames go black: motion is lost there

All are pure functions of the video and, where something is drawn, of the generator, which lives on the CPU so that every
device gives the same.

Source: SAMA's public code (`SwapFourBlocks`, `SpeedChangeFrames`, `MaskRandomFrames`), with the paper's 2 x 2 x 2 blocks.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


def tube_shuffle(
    video: Tensor, *, splits: Sequence[int] = (2, 2, 2), keep_first: int = 0, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Shuffle blocks of a video.

    Args:
        video: (N, C, H, W) of any type.
        splits: blocks along frames, rows and columns. What an axis has beyond equal blocks stays where it is.
        keep_first: frames at the beginning that stay.
        generator: draws the order, anew while it is the one that was there.

    Returns:
        The new video, and the order (blocks,): block k is what block order[k] was.

    Raises:
        ValueError: an axis has fewer places than blocks, or there is one block.
    """
    sizes = (len(video) - keep_first, *video.shape[2:])
    axes = ("frames", "rows", "columns")
    for name, size, split in zip(axes, sizes, splits, strict=True):
        if not 1 <= split <= size:
            raise ValueError(f"tube_shuffle: `splits` must be from 1 to the {size} {name} of the video, got {split}.")
    count = math.prod(splits)
    if count == 1:
        raise ValueError("tube_shuffle: `splits` is one block, and there is nothing to shuffle. Split an axis.")
    order = torch.arange(count)
    while torch.equal(order, torch.arange(count)):
        order = torch.randperm(count, generator=generator)
    t, h, w = (size // split for size, split in zip(sizes, splits, strict=True))
    places = [
        (
            slice(keep_first + i * t, keep_first + (i + 1) * t),
            slice(None),
            slice(j * h, j * h + h),
            slice(k * w, k * w + w),
        )
        for i in range(splits[0])
        for j in range(splits[1])
        for k in range(splits[2])
    ]
    shuffled = video.clone()
    for place, source in zip(places, order.tolist(), strict=True):
        shuffled[place] = video[places[source]]
    return shuffled, order


def speed(video: Tensor, factor: float, *, keep_length: bool = False) -> Tensor:
    """Play a video `factor` times as fast: frame k is the nearest to k * factor.

    Args:
        video: (N, ...) of any type.
        factor: greater than 0; below 1 it is slower.
        keep_length: give N frames, repeating the last one. Otherwise as many as there are, cut to 4 m + 1, which is
            what CogVideoX and Wan take.

    Raises:
        ValueError: the factor is not above 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"speed: `factor` must be a finite number > 0, got {factor!r}.")
    count = len(video) if keep_length else int((len(video) - 1) / factor) // 4 * 4 + 1
    source = (torch.arange(count, dtype=torch.float64) * factor + 0.5).floor().long().clamp(max=len(video) - 1)
    return video[source.to(video.device)]


def cube_inpaint(
    video: Tensor,
    *,
    ratio: float = 0.3,
    value: float = -1.0,
    protect_first: bool = True,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Fill a few successive frames with one value.

    Args:
        video: (N, C, H, W).
        ratio: share of the frames, from 0 to 1; one frame at least.
        value: -1 is black in [-1, 1].
        protect_first: leave the first frame.
        generator: draws where they begin.

    Returns:
        The new video, and the mask (N,) of the frames that are filled.

    Raises:
        ValueError: the ratio is not in [0, 1], or there are too few frames for it.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"cube_inpaint: `ratio` must be from 0 to 1, got {ratio!r}.")
    length, first = max(1, math.floor(ratio * len(video) + 0.5)), int(protect_first)
    if first + length > len(video):
        raise ValueError(
            f"cube_inpaint: `ratio` {ratio} takes {length} of {len(video)} frames, which leaves none for the protected first. "
            "Take a smaller ratio, or protect_first=False."
        )
    start = int(torch.randint(first, len(video) - length + 1, (), generator=generator))
    mask = torch.zeros(len(video), dtype=torch.bool, device=video.device)
    mask[start : start + length] = True
    return torch.where(mask[:, None, None, None], torch.as_tensor(value, dtype=video.dtype), video), mask


#: Name -> change of a window that is trained on, which keeps its first frame (the image, and where the subject is) and its
#: length: shuffled blocks, twice the speed and then a standstill, some black frames.
TRANSFORMS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "shuffle": lambda video, generator: tube_shuffle(video, keep_first=1, generator=generator)[0],
    "speed": lambda video, generator: speed(video, 2, keep_length=True),
    "inpaint": lambda video, generator: cube_inpaint(video, generator=generator)[0],
}
