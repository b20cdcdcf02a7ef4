"""Reading videos: which frame stands for which moment, what is cut out of it, and what happens to broken files."""

import random
import struct
import tarfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

import av
from lgf_trainer.data.video import Fit, Video, VideoError, read_video, to_signed
from support.clips import REAL, write_clip, write_frames

SIZE = (16, 24)


def brightness(path: Path, rate: float, **options) -> list[int]:
    """Which source frame each frame at `rate` is, of a clip made by `numbered`."""
    video = Video(path, rate, **options)
    ((_, frames),) = video.windows([0], video.frames, Fit.stretch(video.size, SIZE))
    return [int(value / 4) for value in frames.float().mean((1, 2, 3)).tolist()]


def numbered(path: Path, times: list[int], time_base: Fraction = Fraction(1, 1000), **options) -> Path:
    """Frame i is grey of brightness 4 i + 2, on screen from times[i] time bases on."""
    frames = [torch.full((32, 48, 3), 4 * i + 2, dtype=torch.uint8) for i in range(len(times))]
    return write_frames(path, frames, times, time_base, **options)


def even(frames: int, rate: Fraction | int, scale: int = 90000) -> list[int]:
    return [round(i * scale / rate) for i in range(frames)]


@pytest.mark.parametrize("own", [8, 24, 30, Fraction(30000, 1001), 25, 60, 5])
@pytest.mark.parametrize("rate", [8, 7.5])
def test_frames_are_those_on_screen_at_exact_moments(tmp_path, own, rate):
    path = numbered(tmp_path / "a.mp4", even(50, own), Fraction(1, 90000))
    expected, k = [], 0
    while Fraction(k) / Fraction(rate) < Fraction(50) / own:
        expected.append(int(Fraction(k) / Fraction(rate) * own + Fraction(1, 10**6)))
        k += 1
    assert brightness(path, rate) == expected


def test_timestamps_rounded_to_milliseconds_do_not_shift_frames(tmp_path):
    times = even(48, 24, 1000)  # frame 3 k is at 125 k: exact, its neighbours are rounded
    assert brightness(numbered(tmp_path / "a.mkv", times), 8)[:16] == list(range(0, 48, 3))
    assert brightness(numbered(tmp_path / "b.mkv", even(60, 30, 1000)), 30)[:60] == list(range(60))


def test_variable_frame_rate(tmp_path):
    times = [0, 100, 250, 900, 910, 920, 1000, 1130]  # a pause, and a burst that falls between two moments
    frames = brightness(numbered(tmp_path / "a.mkv", times), 8)
    assert frames[:10] == [0, 1, 2, 2, 2, 2, 2, 2, 6, 6]


def test_a_frame_that_comes_a_millisecond_late_is_late(tmp_path):
    assert brightness(numbered(tmp_path / "a.mkv", [0, 126, 250, 375, 501]), 8)[:5] == [0, 0, 2, 3, 3]


def test_time_begins_with_the_first_frame(tmp_path):
    late = [t + 5000 for t in even(24, 24, 1000)]
    assert brightness(numbered(tmp_path / "a.mkv", late), 8)[:8] == list(range(0, 24, 3))


def test_a_stream_without_timestamps_is_counted(tmp_path):
    path = numbered(tmp_path / "a.h264", even(24, 24), Fraction(1, 90000))
    with av.open(str(path)) as container:
        assert any(p.pts is None for p in container.demux() if p.size), "the test needs a file without timestamps"
        assert container.streams.video[0].average_rate != 24, "FFmpeg's own guess"
    assert brightness(path, 24) == list(range(24))


def test_windows_are_those_of_the_whole_video(tmp_path):
    video = Video(write_clip(tmp_path / "a.mp4", frames=40, rate=8), 8)
    fit = Fit.cover(video.size, SIZE)
    ((_, whole),) = video.windows([0], 40, fit)
    assert whole.shape == (40, 3, *SIZE) and whole.dtype == torch.uint8
    for starts in ([0, 4, 8], [3], [0, 20], [5, 6], [31]):
        windows = list(video.windows(starts, 9, fit))
        assert [start for start, _ in windows] == starts
        for start, frames in windows:
            assert torch.equal(frames, whole[start : start + 9])
    assert list(video.windows([], 9, fit)) == []


def test_no_more_than_a_window_is_held(tmp_path, monkeypatch):
    """Frames are counted while they are alive: those of one window, one more, and nothing of earlier ones."""
    import weakref

    from lgf_trainer.data import video as module

    alive, most, real = weakref.WeakSet(), 0, module.pixels

    class Pixels(torch.Tensor):
        pass

    def pixels(*arguments):
        nonlocal most
        tensor = real(*arguments).as_subclass(Pixels)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(module, "pixels", pixels)
    video = Video(write_clip(tmp_path / "a.mp4", frames=60, rate=8), 8)
    assert len([start for start, _ in video.windows(range(0, 52, 4), 9, Fit.cover(video.size, SIZE))]) == 13
    assert most <= 10


@pytest.mark.parametrize("source", [(32, 48), (48, 48), (30, 90), (97, 33), (16, 24), (8, 12)])
def test_the_middle_is_cut_out_with_its_aspect_ratio(source):
    fit = Fit.cover(source, SIZE)
    assert all(r >= s for r, s in zip(fit.resized, SIZE, strict=True))
    assert any(r == s for r, s in zip(fit.resized, SIZE, strict=True))
    scales = [r / s for r, s in zip(fit.resized, source, strict=True)]
    assert scales[0] == pytest.approx(scales[1], abs=0.6 / min(source))
    rows = torch.arange(fit.resized[0])[:, None].expand(fit.resized)
    cut = fit.cut(rows)
    assert cut.shape == SIZE and abs((cut[0, 0] - 0) - (fit.resized[0] - 1 - cut[-1, 0])) <= 1


def test_boxes_move_with_the_picture():
    fit = Fit.cover((32, 96), SIZE)  # halved, then 12 columns are cut off on either side
    assert fit.resized == (16, 48)
    assert fit.box(24, 0, 72, 32) == (0, 0, 24, 16)
    assert fit.box(40, 8, 48, 16) == (8, 4, 12, 8)
    assert fit.box(0, 0, 96, 32) == (0, 0, 24, 16)
    assert fit.box(0, 0, 24, 32) is None and fit.box(80, 0, 96, 32) is None
    assert Fit.stretch((32, 96), SIZE).box(0, 0, 96, 32) == (0, 0, 24, 16)


def test_the_pixels_are_those_of_the_middle(tmp_path):
    frame = torch.zeros(32, 96, 3, dtype=torch.uint8)
    frame[:, 24:48, 0], frame[:, 48:72, 2], frame[:, :24] = 200, 200, 255
    video = Video(write_frames(tmp_path / "a.mp4", [frame] * 3, [0, 1, 2], Fraction(1, 8)), 8)
    ((_, frames),) = video.windows([0], 3, Fit.cover(video.size, SIZE))
    left, right = frames[0, :, :, 1:11].float().mean((1, 2)), frames[0, :, :, 13:23].float().mean((1, 2))
    assert left[0] > 150 and left[2] < 60 and right[2] > 150 and right[0] < 60


def test_rotated_videos_are_shown_upright(tmp_path):
    frame = torch.zeros(32, 64, 3, dtype=torch.uint8)
    frame[:, :32] = 220  # the left half is bright
    path = write_frames(tmp_path / "a.mp4", [frame] * 3, [0, 1, 2], Fraction(1, 8))
    one, zero, whole = 1 << 16, 0, 1 << 30
    upright = struct.pack(">9i", one, zero, zero, zero, one, zero, zero, zero, whole)
    content = path.read_bytes()
    track = content.index(b"tkhd")
    place = content.index(upright, track)
    quarter = struct.pack(">9i", zero, one, zero, -one, zero, zero, 32 << 16, zero, whole)  # clockwise
    path.write_bytes(content[:place] + quarter + content[place + 36 :])
    video = Video(path, 8)
    assert video.size == (64, 32)
    ((_, frames),) = video.windows([0], 3, Fit.cover(video.size, (64, 32)))
    assert frames[0, :, :28].float().mean() > 190 and frames[0, :, 36:].float().mean() < 40


def test_pixels_that_are_not_square(tmp_path):
    path = numbered(tmp_path / "a.mp4", [0, 1, 2], Fraction(1, 8), aspect=Fraction(2))
    assert Video(path, 8).size == (32, 96)


def test_read_video(tmp_path):
    video = read_video(write_clip(tmp_path / "a.mp4", frames=24, rate=24), (72, 128))
    assert video.shape == (8, 3, 72, 128) and video.min() >= -1 and video.max() <= 1 and video.std() > 0.1
    first = read_video(tmp_path / "a.mp4", (72, 128), at_most=3)
    assert torch.equal(first, video[:3]) and torch.equal(read_video(tmp_path / "a.mp4", (72, 128), at_most=99), video)
    assert torch.equal(to_signed(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


def test_too_few_frames(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=5)
    with pytest.raises(VideoError, match=r"has 5 frames at 8 per second, and 12 are needed.*1\.5 seconds"):
        read_video(path, (8, 8), at_least=12)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file"):
        Video(tmp_path / "gone.mp4", 8)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
def test_files_that_are_no_videos(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4 is not a video that FFmpeg can decode"):
        Video(path, 8)


def test_timestamps_that_make_no_sense(tmp_path):
    with pytest.raises(VideoError, match="said to last for 278 hours"):
        Video(numbered(tmp_path / "a.mkv", [0, 100, 10**9]), 8)


def test_texts_in_a_file_may_be_in_any_encoding(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=9, metadata={"title": "Muehle"})
    content = path.read_bytes()
    assert b"Muehle" in content
    path.write_bytes(content.replace(b"Muehle", "M\xfchle.".encode("latin-1")))
    assert Video(path, 8).frames == 9


def test_whatever_is_damaged_is_said_in_our_words(tmp_path):
    rng, outcomes = random.Random(0), set()
    files = [write_clip(tmp_path / name, frames=20).read_bytes() for name in ("a.mp4", "a.mkv", "a.avi")]
    for index in range(150):
        content = bytearray(files[index % 3])
        for _ in range(rng.choice([1, 10, 100])):
            content[rng.randrange(rng.choice([2000, len(content)]))] = rng.randrange(256)
        path = tmp_path / "damaged"
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            video = Video(path, 8)
            windows = video.windows(range(0, min(video.frames, 20) - 8, 4), 9, Fit.cover(video.size, SIZE))
            outcomes.add(len(list(windows)))
        except VideoError as error:
            assert "damaged" in str(error) and "\n" not in str(error)
            outcomes.add("refused")
    assert len(outcomes) > 1


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(torch.zeros(1, 1024).numpy(), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound)), container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        Video(path, 8)


def test_a_file_cut_off_before_its_index(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match="not a video"):
        Video(path, 8)


@pytest.mark.parametrize("keep", [0.5, 0.7, 0.9])
def test_a_file_cut_off_after_its_index_gives_the_windows_before(tmp_path, keep):
    path = write_clip(tmp_path / "a.mp4", frames=48, options={"movflags": "faststart"})
    whole = Video(path, 8)
    fit = Fit.cover(whole.size, SIZE)
    ((_, frames),) = whole.windows([0], 48, fit)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    video, seen = Video(cut, 8), []
    with pytest.raises(VideoError, match=r"damaged: it cannot be decoded beyond \d\.\d seconds"):
        for start, window in video.windows(range(0, 40, 2), 9, fit):
            assert torch.equal(window, frames[start : start + 9])
            seen.append(start)
    assert seen == list(range(0, len(seen) * 2, 2)) and len(seen) > 0 and seen[-1] < 40 * keep + 8
    assert video.cut_off and not whole.cut_off


def test_a_member_of_an_archive(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=12)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(path, "x/a.mp4")

    def member():
        archive = tarfile.open(tmp_path / "a.tar")
        return archive.extractfile("x/a.mp4")

    fit = Fit.stretch((96, 160), SIZE)
    ((_, expected),) = Video(path, 8).windows([0], 12, fit)
    ((_, frames),) = Video("a.tar/x/a.mp4", 8, member).windows([0], 12, fit)
    assert torch.equal(frames, expected)


@pytest.mark.parametrize("name", ["01_dog.mp4", "05_default_juggle.mp4"])
def test_real_videos(name):
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not here; LGF_TEST_VIDEOS names its directory")
    video = Video(REAL / name, 8)
    with av.open(str(REAL / name)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert abs(video.frames - 8 * (times[-1] - times[0])) <= 2
    ((_, window),) = video.windows([video.frames - 9], 9, Fit.cover(video.size, SIZE))
    assert window.shape == (9, 3, *SIZE) and window.float().std() > 10


def test_the_last_frame_is_shown_for_as_long_as_the_file_says(tmp_path):
    times = [0, 125, 250, 2250]  # the last lasts an eighth of a second, not as long as the mean
    path = numbered(tmp_path / "a.mp4", times, Fraction(1, 1000))
    with av.open(str(path)) as container:
        last = [p for p in container.demux(video=0) if p.size][-1]
        shown = float((last.pts + last.duration) * last.time_base)
    assert brightness(path, 8)[:19] == [0, 1] + [2] * 16 + [3]
    assert Video(path, 8).frames == round(8 * shown) == 19


class Corrupt:
    """A frame that its decoder marks as damaged."""

    def __init__(self, frame):
        self.pts, self.is_corrupt = frame.pts, True


@pytest.mark.parametrize("damage", ["dropped", "corrupt"])
def test_a_frame_lost_in_the_middle_ends_the_video_there(tmp_path, monkeypatch, damage):
    from lgf_trainer.data import video as module

    video = Video(write_clip(tmp_path / "a.mp4", frames=24), 8)
    decoded = module.decoded

    def damaged(stream, numbered):
        for number, frame in enumerate(decoded(stream, numbered)):
            if number != 12:
                yield frame
            elif damage == "corrupt":
                yield Corrupt(frame)

    monkeypatch.setattr(module, "decoded", damaged)
    seen = []
    with pytest.raises(VideoError, match=r"cannot be decoded beyond 1\.5 seconds"):
        for start, _ in video.windows([0, 3, 4, 8], 9, Fit.cover(video.size, SIZE)):
            seen.append(start)
    assert seen == [0, 3]
