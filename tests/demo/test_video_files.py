"""The teacher from pixels, and warping."""

import pytest
import torch
from lgf_demo.video import liveliest_part, warp_back, warping_psnr
from lgf_trainer.motion import motion_of, patch_descriptors
from support.clips import REAL


def textured(height: int, width: int) -> torch.Tensor:
    coarse = torch.randn(1, 3, height // 6, width // 6)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(-1, 1)


def test_descriptors_follow_a_moving_texture():
    frame = textured(80, 112)
    video = torch.stack([frame, frame.roll((8, -16), (1, 2))])
    inner = motion_of(patch_descriptors(video)[None])[0, 0, 3:-3, 3:-3]
    torch.testing.assert_close(inner.flatten(0, 1).median(0).values, torch.tensor([1.0, -2.0]), rtol=0, atol=0.15)


def test_a_still_video_does_not_move():
    video = textured(80, 112).expand(3, -1, -1, -1)
    assert motion_of(patch_descriptors(video)[None])[..., 3:-3, 3:-3, :].abs().max() < 0.15


def test_a_blank_video_has_finite_descriptors():
    assert patch_descriptors(torch.zeros(2, 3, 32, 32)).isfinite().all()


def test_the_liveliest_part_is_where_pixels_change():
    video = torch.zeros(4, 3, 64, 96)
    video[1::2, :, 40:56, 64:88] = 1
    part = liveliest_part(video, (32, 48))
    assert part.shape == (4, 3, 32, 48) and part[1].sum() == video[1].sum()


def test_warping_with_the_true_motion_gives_the_frame_back():
    frame = textured(80, 112)
    video = torch.stack([frame, frame.roll((8, -16), (1, 2))])
    motion = torch.tensor([1.0, -2.0]).expand(1, 10, 14, 2)
    inner = (slice(None), slice(None), slice(8, -16), slice(24, -8))
    torch.testing.assert_close(warp_back(video, motion)[inner], video[:1][inner], rtol=0, atol=1e-4)
    assert warping_psnr(video[None], motion[None]) > warping_psnr(video[None], -motion[None])


def test_psnr_of_a_known_error():
    video = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.2)])
    assert warping_psnr(video[None], torch.zeros(1, 1, 2, 2, 2)) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize("name", ["01_dog.mp4", "05_default_juggle.mp4"])
def test_the_teacher_predicts_a_real_video_better_than_no_motion(name):
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not here; LGF_TEST_VIDEOS names its directory")
    pytest.importorskip("av")
    from lgf_trainer.video import read_video

    video = liveliest_part(read_video(REAL / name, (144, 256)), (72, 128))
    motion = motion_of(patch_descriptors(video)[None])
    assert warping_psnr(video[None], motion) > warping_psnr(video[None], torch.zeros_like(motion)) + 0.2
