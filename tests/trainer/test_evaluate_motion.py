"""Motion read from Local Gram Flow is the motion that is there, in videos and in caches, and is drawn as what it is."""

import io
import re

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

import lgf_cli
from lgf_demo.clips import make_clip
from lgf_demo.oracle import oracle_features
from lgf_trainer.data import export
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.evaluate import main
from lgf_trainer.evaluation.motion import (
    certainty,
    end_point_error,
    expected_motion,
    patch_descriptors,
    strongest_motion,
)
from lgf_trainer.evaluation.pictures import Field, Motion, draw, flow_colours, of_cache, of_video, speed
from PIL import Image

from lgf_kernels import local_gram_flow

GRID = FRAMES, HEIGHT, WIDTH = 5, 10, 14
READINGS = {"expected": expected_motion, "strongest": strongest_motion}


@pytest.fixture(scope="module")
def clip():
    return make_clip(0, *GRID)


@pytest.fixture(scope="module")
def teacher(clip):
    """Logits of the oracle, forward and backward."""
    return [local_gram_flow(features[None])[0] for features in oracle_features(clip)]


def pixels(clip) -> np.ndarray:
    return ((clip.video + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def nearest(frames: torch.Tensor, video: torch.Tensor) -> list[int]:
    """Which frames of the video these are, after coding."""
    distances = (frames[:, None] - video[None]).abs().mean((2, 3, 4))
    assert distances.min(1).values.max() < 0.06
    return distances.argmin(1).tolist()


@pytest.fixture
def folder(tmp_path, clip, teacher):
    """The clip as a video, and a cache of its teacher as extraction would leave it."""
    (tmp_path / "clip.mp4").write_bytes(export.encode_video(pixels(clip), 8, {}))
    settings = {"window": 7, "fps": 8, "frames": FRAMES, "height": 8 * HEIGHT, "width": 8 * WIDTH}
    cache = WindowCache(tmp_path / "cache", settings)
    tensors = dict(zip(("teacher_forward", "teacher_backward"), (t.half() for t in teacher), strict=True))
    for key in ("b", "a", "c"):
        cache.write(key, tensors, {"video": str(tmp_path / "clip.mp4"), "start": 0, "caption": ""})
    return tmp_path


# --- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(1, -2), (-3, 0), (0, 3), (0, 0)])
def test_the_strongest_position_is_the_exact_shift(shift):
    features = torch.randn(1, 1, 9, 11, 32)
    both = torch.cat([features, features.roll(shift, (2, 3))], 1)
    motion = strongest_motion(local_gram_flow(both))[0, 0]
    inner = motion[3:-3, 3:-3]
    assert torch.equal(inner, torch.tensor(shift).float().expand_as(inner))


def test_nothing_points_out_of_the_picture():
    motion = strongest_motion(torch.randn(2, 6, 8, 49))
    there = motion + torch.stack(torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij"), -1)
    assert there.min() >= 0 and (there <= torch.tensor([5, 7])).all() and motion.abs().max() == 3


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("seed", range(3))
def test_pixels_of_a_generated_clip_show_its_motion(reading, seed):
    clip = make_clip(seed, *GRID)
    motion = READINGS[reading](local_gram_flow(patch_descriptors(clip.video)[None])[0])
    still = end_point_error(torch.zeros_like(clip.motion), clip.motion, clip.moving)
    assert end_point_error(motion, clip.motion, clip.moving) < 0.65 * still
    assert end_point_error(-motion, clip.motion, clip.moving) > 1.3 * still


def test_the_border_of_the_picture_is_no_edge():
    """In plain frames of changing brightness, a token at the border looks like one in the middle."""
    video = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 8 * 5, 8 * 6)
    described = patch_descriptors(video, components=8)
    torch.testing.assert_close(described, described[:, 2:3, 3:4].expand_as(described), rtol=0, atol=1e-3)


def test_few_pixels_that_change_have_descriptors():
    """The covariance is of rank 1, and nearly 0: LAPACK gave up on most of these in float32."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        change = torch.randint(-4, 5, (1, 3, 8, 8), generator=generator) / 255
        few = torch.rand(change.shape, generator=generator) < 0.3
        video = torch.cat([torch.zeros(1, 3, 8, 8), change * few])
        assert torch.allclose(patch_descriptors(video).norm(dim=-1), torch.ones(()))
    assert not patch_descriptors(torch.full((2, 3, 8, 16), -1.0)).any()


def test_certainty():
    flat, sure, two = torch.zeros(3, 1, 9, 11, 49)
    sure[..., 24] = two[..., 24] = two[..., 25] = 100
    assert certainty(flat).abs().max() < 1e-6 and (certainty(sure) - 1).abs().max() < 1e-6
    inner = two[:, :7, :7]  # all see 4 x 4 positions at least, and the token at the right border only one of the two
    inside = (torch.arange(7)[:, None].clamp(max=3) + 4).clamp(max=7) - (torch.arange(7)[:, None] - 3).clamp(min=0)
    positions = (inside * inside.T).float()
    expected = 1 - torch.tensor(2.0).log() / positions.log()
    expected[:, -1] = 1
    torch.testing.assert_close(certainty(inner)[0], expected, rtol=0, atol=1e-6)
    logits = torch.rand(1, 9, 11, 49)
    assert (certainty(logits, temperature=10.0) < certainty(logits, temperature=0.1)).all()


# --- clips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS)
def test_a_video_is_read_as_its_pixels(folder, clip, reading):
    (found,) = of_video(folder / "clip.mp4", reading, (HEIGHT, WIDTH), frames=4)
    assert found.name == "clip" and found.frames.shape == (3, 3, 8 * HEIGHT, 8 * WIDTH) and found.reach == 3
    assert nearest(found.frames, clip.video) == [0, 1, 2]
    moving = clip.moving[:3]
    still = end_point_error(torch.zeros_like(clip.motion[:3]), clip.motion[:3], moving)
    assert end_point_error(found.fields["pixels"].motion, clip.motion[:3], moving) < 0.65 * still


@pytest.mark.parametrize("reading", READINGS)
def test_a_cache_shows_both_directions_together_and_each(folder, clip, teacher, reading):
    found = list(of_cache(folder / "cache", reading, count=2))
    assert [motion.name for motion in found] == ["a", "b"]
    forward, backward = (t.half().float() for t in teacher)
    fields = {"both directions": (forward + backward) / 2, "forward": forward, "backward": backward}
    assert list(found[0].fields) == list(fields)
    for name, logits in fields.items():
        torch.testing.assert_close(found[0].fields[name].motion, READINGS[reading](logits))
        torch.testing.assert_close(found[0].fields[name].certainty, certainty(logits))
    assert end_point_error(found[0].fields["both directions"].motion, clip.motion, clip.moving) < 0.6
    assert nearest(found[0].frames, clip.video) == [0, 1, 2, 3]


def test_pairs_of_latent_frames_begin_with_every_fourth_frame(tmp_path, clip):
    long = make_clip(1, 9, HEIGHT, WIDTH)
    (tmp_path / "long.mp4").write_bytes(export.encode_video(pixels(long), 8, {}))
    settings = {"window": 5, "fps": 8, "frames": 9, "height": 8 * HEIGHT, "width": 8 * WIDTH}
    logits = torch.randn(2, HEIGHT, WIDTH, 25)
    tensors = {"teacher_forward": logits, "teacher_backward": logits.clone()}
    WindowCache(tmp_path / "cache", settings).write("k", tensors, {"video": str(tmp_path / "long.mp4"), "start": 0})
    (found,) = of_cache(tmp_path / "cache", "strongest", 1)
    assert found.reach == 2 and found.fields["forward"].motion.abs().max() == 2
    assert nearest(found.frames, long.video) == [0, 4]


def test_without_its_video_a_cache_has_no_frames(folder):
    (folder / "clip.mp4").unlink()
    (found,) = of_cache(folder / "cache", "expected", 1)
    assert found.frames is None and draw(found, 2)[:4] == b"\x89PNG"


def test_speed():
    motion = torch.zeros(2, 4, 5, 2)
    motion[0, 0, 0] = torch.tensor([3.0, 4.0])
    motion[1, 1, 1] = torch.tensor([0.0, -0.25])
    sure = torch.ones(2, 4, 5)
    assert speed(Motion("", {"first": Field(motion, sure)}, None, 3)) == pytest.approx((5.25 / 40, 1 / 40, 1))
    sure[0, 0, 0] = 0.2  # the motion of this one cannot be read
    assert speed(
        Motion("", {"first": Field(motion, sure), "second": Field(motion + 9, sure)}, None, 3)
    ) == pytest.approx((0.25 / 39, 0, 39 / 40))
    assert speed(Motion("", {"first": Field(motion, 0 * sure)}, None, 3)) == (0, 0, 0)


# --- pictures -------------------------------------------------------------------------------------------------


def test_colours_tell_direction_and_length():
    white, red = [1.0, 1, 1], [1.0, 0, 0]
    motion = torch.tensor([[0.0, 0], [0, 3], [0, 6], [0, 1.5], [3, 0], [-3, 0], [0, -3]])
    none, right, beyond, half, down, up, left = flow_colours(motion, reach=3)
    assert np.allclose(none, white) and np.allclose(right, red) and np.allclose(beyond, red)
    assert np.allclose(half, [1, 0.5, 0.5])
    assert np.allclose(left, [0, 1, 1]) and np.allclose(down, [0.5, 1, 0]) and np.allclose(up, [0.5, 0, 1])


def panel(motion: torch.Tensor, frames: torch.Tensor | None = None, certain: float = 1.0) -> np.ndarray:
    sure = torch.full(motion.shape[:3], certain)
    picture = draw(Motion("", {"field": Field(motion, sure)}, frames, 3), pairs=1)
    return np.array(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_arrows_are_drawn_where_something_moves():
    """Left panel: arrows alone. One token in its right half moves to the right."""
    still, moving = torch.zeros(1, 8, 12, 2), torch.zeros(1, 8, 12, 2)
    moving[0, 4, 9] = torch.tensor([0.0, 2.0])
    changed = np.abs(panel(moving) - panel(still)).sum(2) > 60
    left = changed[:, : changed.shape[1] // 2]
    rows, columns = np.nonzero(left)
    assert 20 < left.sum() < 0.05 * left.size
    assert np.ptp(columns) > 2 * np.ptp(rows) and columns.mean() > left.shape[1] / 2
    small = torch.zeros(1, 8, 12, 2)
    small[0, 4, 9, 1] = 0.4
    assert np.array_equal(panel(moving, certain=0.2), panel(still, certain=0.2)), "nothing is drawn that cannot be read"
    assert not (np.abs(panel(small) - panel(still)).sum(2)[:, : changed.shape[1] // 2] > 60).any()


def test_a_row_for_each_of_the_pairs_from_first_to_last():
    frames = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 64, 96)
    motion = Motion("", {"field": Field(torch.zeros(5, 8, 12, 2), torch.ones(5, 8, 12))}, frames, 3)
    heights = [Image.open(io.BytesIO(draw(motion, pairs))).height for pairs in (1, 3, 9)]
    assert heights[0] < heights[1] < heights[2]
    three = np.array(Image.open(io.BytesIO(draw(motion, 3))).convert("L"))
    shades = [three[int(three.shape[0] * place), three.shape[1] // 4] for place in (0.2, 0.5, 0.75)]
    assert shades == pytest.approx([0.35 * 255, 0.675 * 255, 255], abs=4)


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command(folder, capsys):
    words = [
        "motion",
        folder / "clip.mp4",
        folder / "cache",
        "--output",
        folder / "out",
        "--windows",
        2,
        "--grid",
        10,
        14,
    ]
    assert main([str(word) for word in words]) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.png", "clip.png"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("tokens a frame" in line for line in lines)
    (of_clip,) = of_video(folder / "clip.mp4", "expected", (10, 14), 49)
    mean, moving, readable = speed(of_clip)
    assert f"read in {readable:.0%} of the tokens; of these {moving:.0%} move" in lines[0] and 0.3 < readable < 1
    assert f"all by {mean:.2f} tokens a frame" in lines[0]


def test_a_folder_of_videos(folder):
    (folder / "videos" / "more").mkdir(parents=True)
    for name in ("a.mp4", "more/b.MP4"):
        (folder / "videos" / name).write_bytes((folder / "clip.mp4").read_bytes())
    (folder / "videos" / "a.txt").write_text("a caption")
    assert main(["motion", str(folder / "videos"), "--output", str(folder / "out"), "--grid", "10", "14"]) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.png"]


def test_controls_are_drawn_and_judged(tmp_path, capsys):
    long = make_clip(0, 9, HEIGHT, WIDTH)
    (tmp_path / "long.mp4").write_bytes(export.encode_video(pixels(long), 8, {}))
    words = ["motion", str(tmp_path / "long.mp4"), "--grid", "10", "14", "--output", str(tmp_path / "out")]
    assert main([*words, "--control", "shuffle", "speed", "inpaint"]) == 0
    names = ["long-inpaint.png", "long-shuffle.png", "long-speed.png", "long.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    control")]
    assert [note.split()[1] for note in notes] == ["shuffle:", "speed:", "inpaint:"]
    assert re.search(r"certainty \d% in pairs of frames with a black frame, [3-9].% in the others", notes[2])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name videos, or caches"),
        (["gone.mp4"], "gone.mp4: no such file"),
        (["nothing"], "nothing has 0 videos, and 1 at least are needed"),
        (["empty"], "empty has no windows yet. Fill it with lgf extract"),
        (["latents"], "latents holds no teacher"),
        (["text.mp4"], "is not a video"),
        (["one.mp4"], "has 1 frames at 8 per second, and 2 are needed"),
        (["clip.mp4", "--pairs", "0"], "--pairs must be at least 1, got 0"),
        (
            ["clip.mp4", "--grid", "1", "1"],
            "--grid 1 1 is one token, which has nowhere to move to. Give more rows or columns",
        ),
        (["clip.mp4", "--frames", "1"], "--frames must be at least 2, got 1"),
        (["clip.mp4", "clip.mp4"], "clip.png"),
        (["clip.mp4", "--control", "speed"], "has 5 frames at 8 per second, and 8 are needed"),
        (["latents", "--control", "speed"], "--control changes videos, and latents is a cache. Give the videos"),
    ],
)
def test_mistakes_end_in_one_line(folder, monkeypatch, words, reason, clip):
    monkeypatch.chdir(folder)
    (folder / "text.mp4").write_text("no video")
    (folder / "one.mp4").write_bytes(export.encode_video(pixels(clip)[:1], 8, {}))
    (folder / "nothing").mkdir()
    WindowCache(folder / "empty", {})
    WindowCache(folder / "latents", {"frames": 9}).write("k", {"latents": torch.zeros(2)}, {})
    with pytest.raises(SystemExit) as end:
        lgf_cli.main(["eval", "motion", *words])
    assert reason in str(end.value) and "\n" not in str(end.value)
