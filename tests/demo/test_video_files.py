"""Reading videos, the teacher from pixels, and warping."""

import os
from pathlib import Path

import pytest
import torch
from lgf_trainer.motion import motion_of, patch_descriptors

from lgf_kernels.demo.video import (
    VideoError,
    liveliest_part,
    read_video,
    warp_back,
    warping_psnr,
)

av = pytest.importorskip("av")

REAL = Path(os.environ.get("LGF_TEST_VIDEOS", Path(__file__).parents[3] / "shared" / "data"))


def write_video(path: Path, frames: int, rate: int = 8, shift: int = 2) -> Path:
    """A smooth random picture that moves to the right."""
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 16), size=(96, 160), mode="bicubic").clamp(0, 1)[0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.bit_rate = 160, 96, 4_000_000
        for t in range(frames):
            pixels = (255 * picture.roll(shift * t, 2)).byte().permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def textured(height: int, width: int) -> torch.Tensor:
    coarse = torch.randn(1, 3, height // 6, width // 6)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(-1, 1)


def test_reads_frames_at_the_asked_size_and_rate(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=24, rate=24)
    video = read_video(path, (72, 128), rate=8)
    assert video.shape == (8, 3, 72, 128) and video.min() >= -1 and video.max() <= 1 and video.std() > 0.1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file.*--video"):
        read_video(tmp_path / "gone.mp4", (8, 8))


def test_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("hello")
    with pytest.raises(VideoError, match=r"text\.mp4 is not a video"):
        read_video(path, (8, 8))


def test_too_few_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=5)
    with pytest.raises(VideoError, match=r"has 5 frames at 8 per second, and 12 are needed.*1\.5 seconds"):
        read_video(path, (8, 8), at_least=12)


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
    video = liveliest_part(read_video(REAL / name, (144, 256)), (72, 128))
    motion = motion_of(patch_descriptors(video)[None])
    assert warping_psnr(video[None], motion) > warping_psnr(video[None], torch.zeros_like(motion)) + 0.2
