"""Motion that is read from pixels notices what is done to a video whose motion is known."""

import re

import pytest
import torch
from lgf_trainer.evaluation.controls import CONTROLS, Reading, verdict
from lgf_trainer.evaluation.motion import TOKEN, certainty, patch_descriptors, strongest_motion
from torch.nn.functional import interpolate

from lgf_kernels import local_gram_flow

ROWS, COLUMNS = 12, 20


def texture(frames: int, step: int) -> torch.Tensor:
    """A texture that moves to the right by whole pixels and comes in again on the left."""
    coarse = torch.rand(1, 3, ROWS * 2, COLUMNS * 2, generator=torch.Generator().manual_seed(0))
    picture = interpolate(coarse, scale_factor=TOKEN // 2, mode="bicubic")[0] * 2 - 1
    return torch.stack([picture.roll(step * t, 2) for t in range(frames)])


def read(video: torch.Tensor) -> Reading:
    logits = local_gram_flow(patch_descriptors(video)[None])[0]
    return Reading(logits, strongest_motion(logits))


@pytest.mark.parametrize("frames", [8, 9])
def test_shuffled_blocks_keep_their_motion_but_where_they_meet(frames):
    changed, lost = CONTROLS["shuffle"](texture(frames, TOKEN))
    motion = read(changed).motion
    # Away from the borders of the picture and of the blocks.
    right = (motion == torch.tensor([0.0, 1.0])).all(-1)[:, ROWS // 4, 4 : COLUMNS // 2 - 4]
    assert lost.nonzero()[:, 0].tolist() == ([3] if frames == 8 else [3, 7])
    assert right[~lost].float().mean() > 0.9 and right[lost].float().mean() < 0.5


@pytest.mark.parametrize("frames", [8, 9])
def test_twice_as_fast_is_twice_the_motion(frames):
    before, (changed, lost) = read(texture(frames, TOKEN)), CONTROLS["speed"](texture(frames, TOKEN))
    after = read(changed)
    assert len(changed) == (frames + 1) // 2 and not lost.any()
    assert torch.equal(changed, texture(len(changed), 2 * TOKEN))
    assert (after.motion[:, 3:-3, 3:-3] == torch.tensor([0.0, 2.0])).all()
    assert re.fullmatch(
        r"control speed: (1\.9|2\.0)\d times the motion, (1\.9|2\.0)\d expected of the tokens followed over two frames \(2 if .*\)",
        verdict("speed", before, after, lost, 7),
    )
    still = Reading(before.logits, torch.zeros_like(before.motion))
    assert "nothing moves by 0.5 to 1.5 tokens a frame" in verdict("speed", still, after, lost, 7)


def test_motion_that_is_uneven_is_expected_as_it_is():
    """What moves in every other frame moves no further in two frames than in one."""
    halting = torch.stack([texture(1, 0)[0].roll(TOKEN * ((t + 1) // 2), 2) for t in range(9)])
    before, (changed, lost) = read(halting), CONTROLS["speed"](halting)
    line = verdict("speed", before, read(changed), lost, 7)
    found, expected = map(float, re.findall(r"\d\.\d\d", line))
    assert 0.95 < found < 1.05 and 0.95 < expected < 1.05


def test_black_frames_lose_their_motion_and_no_others():
    video = texture(9, TOKEN)
    before, (changed, lost) = read(video), CONTROLS["inpaint"](video)
    black = (changed == -1).flatten(1).all(1)
    assert black.sum() == 3 and torch.equal(lost, black[1:] | black[:-1]) and lost.sum() == 4
    after = read(changed)
    sure = certainty(after.logits)
    assert sure[lost].mean() < 0.1 < 0.5 * sure[~lost].mean()
    assert (after.motion[~lost][:, 3:-3, 3:-3] == torch.tensor([0.0, 1.0])).all()
    line = verdict("inpaint", before, after, lost, 7)
    assert line.startswith("control inpaint: certainty 0% in pairs of frames with a black frame, ")
