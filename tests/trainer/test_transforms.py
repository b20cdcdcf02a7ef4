"""Known changes of a video are what they say, and motion read from it shows them."""

import pytest
import torch
from lgf_trainer.data.transforms import cube_inpaint, speed, tube_shuffle

N, H, W = 9, 10, 14


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def video():
    return torch.randn(N, 3, H, W)


@pytest.mark.parametrize("splits", [(2, 2, 2), (4, 1, 1), (1, 3, 5), (9, 2, 1)])
def test_a_shuffle_moves_blocks_and_nothing_else(video, splits):
    shuffled, order = tube_shuffle(video, splits=splits, generator=seeded())
    assert not torch.equal(shuffled, video) and torch.equal(shuffled.flatten().sort()[0], video.flatten().sort()[0])
    t, h, w = (size // split for size, split in zip((N, H, W), splits, strict=True))
    blocks = [
        (slice(i * t, i * t + t), slice(None), slice(j * h, j * h + h), slice(k * w, k * w + w))
        for i in range(splits[0]) for j in range(splits[1]) for k in range(splits[2])
    ]  # fmt: skip
    for place, source in zip(blocks, order, strict=True):
        assert torch.equal(shuffled[place], video[blocks[source]])
    assert torch.equal(shuffled[splits[0] * t :], video[splits[0] * t :]), "what is beyond equal blocks stays"


def test_a_shuffle_keeps_the_first_frames_and_is_a_function_of_its_seed(video):
    shuffled, order = tube_shuffle(video, keep_first=1, generator=seeded())
    again, _ = tube_shuffle(video, keep_first=1, generator=seeded())
    assert torch.equal(shuffled[0], video[0]) and torch.equal(shuffled, again)
    assert any(not torch.equal(tube_shuffle(video, generator=seeded(s))[1], order) for s in range(1, 5))
    for seed in range(20):
        assert tube_shuffle(video, splits=(2, 1, 1), generator=seeded(seed))[1].tolist() == [1, 0], "never as it was"


@pytest.mark.parametrize(
    "factor, keep, frames",
    [
        (1, False, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (2, False, [0, 2, 4, 6, 8]),
        (3, False, [0]),
        (2, True, [0, 2, 4, 6, 8, 8, 8, 8, 8]),
        (0.5, True, [0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (0.5, False, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]),
        (1.5, False, [0, 2, 3, 5, 6]),
    ],
)
def test_speed_takes_the_nearest_frames(factor, keep, frames):
    counter = torch.arange(N).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    assert speed(counter, factor, keep_length=keep)[:, 0, 0, 0].tolist() == frames


@pytest.mark.parametrize("ratio, length", [(0.3, 3), (0, 1), (0.5, 5), (8 / 9, 8)])
def test_inpainted_frames_are_black_and_the_others_as_they_were(video, ratio, length):
    starts = set()
    for seed in range(20):
        painted, mask = cube_inpaint(video, ratio=ratio, generator=seeded(seed))
        assert mask.sum() == length and not mask[0]
        assert (painted[mask] == -1).all() and torch.equal(painted[~mask], video[~mask])
        at = mask.nonzero()[:, 0]
        assert at[-1] - at[0] == length - 1
        starts.add(int(at[0]))
    assert min(starts) == 1 and (length == 8 or len(starts) > 1)


def test_halves_keep_their_type(video):
    half = video.half()
    assert {x.dtype for x in (tube_shuffle(half)[0], speed(half, 2), cube_inpaint(half)[0])} == {torch.float16}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v: tube_shuffle(v, splits=(10, 1, 1)), r"`splits` must be from 1 to the 9 frames of the video, got 10"),
        (lambda v: tube_shuffle(v, splits=(1, 1, 0)), r"from 1 to the 14 columns of the video, got 0"),
        (lambda v: tube_shuffle(v, splits=(1, 1, 1)), "is one block, and there is nothing to shuffle"),
        (lambda v: speed(v, 0), "`factor` must be a finite number > 0, got 0"),
        (lambda v: cube_inpaint(v, ratio=1.5), "`ratio` must be from 0 to 1, got 1.5"),
        (lambda v: cube_inpaint(v, ratio=1), "takes 9 of 9 frames, which leaves none for the protected first"),
    ],
)
def test_what_cannot_be_done_is_said(video, call, message):
    with pytest.raises(ValueError, match=message):
        call(video)
