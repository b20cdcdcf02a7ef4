"""Which frame is on screen when, in files without presentation times, cut out of others, joined, or with several streams."""

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("av")

import av
from lgf_trainer.data.timeline import Index, Packet, moving_stream
from lgf_trainer.data.video import Fit, Video, VideoError
from support.clips import numbered_picture, numbers, write_numbered

OPEN = "keyint=12:min-keyint=12:open-gop=1"


def shown(path: Path, rate: float = 8) -> list[int]:
    """The numbers in the frames of a video made by `write_numbered`."""
    video = Video(path, rate)
    ((_, frames),) = video.windows([0], video.frames, Fit.stretch(video.size, (64, 96)))
    return numbers(frames)


def copied(source: Path, target: Path, first: int) -> Path:
    """Copy a stream from its packet `first` on, as `ffmpeg -c copy` cuts."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        read.flags &= ~av.container.Flags.gen_pts.value
        stream = write.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(read.streams.video[0]) if packet.size][first:]
        begin = next((packet.dts for packet in packets if packet.dts is not None), 0)
        for packet in packets:
            packet.dts = None if packet.dts is None else packet.dts - begin
            packet.pts = None if packet.pts is None else packet.pts - begin
            packet.stream = stream
            write.mux(packet)
    return target


def keys(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [n for n, p in enumerate(p for p in container.demux(video=0) if p.size) if p.is_keyframe]


@pytest.mark.parametrize("rate", [8, 24])
@pytest.mark.parametrize(
    "name, codec",
    [("a.avi", "libx264"), ("a.avi", "mpeg4"), ("a.asf", "libx264"), ("a.asf", "mpeg4"), ("a.mpg", "libx264"),
     ("a.h264", "libx264"), ("a.ts", "libx264"), ("a.mkv", "libx264")],
)  # fmt: skip
def test_b_frames_in_containers_without_presentation_times(tmp_path, rate, name, codec):
    path = write_numbered(tmp_path / name, 48, rate, codec, bf=3)
    with av.open(str(path)) as container:
        packets = [p.pts for p in container.demux(video=0) if p.size]
        assert None in packets or packets != sorted(packets) or name in ("a.avi", "a.asf"), "the test needs B-frames"
    expected = list(range(0, 48, rate // 8))
    assert shown(path)[: len(expected)] == expected and Video(path, 8).frames <= len(expected) + 1


@pytest.mark.parametrize("rate, frames", [(25, [0, 3, 6, 9, 12, 15, 18, 21, 25]), (30, [0, 3, 7, 11, 15, 18, 22, 26])])
@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mp4"])
def test_a_frame_is_not_shown_before_its_time_where_the_unit_of_time_is_a_whole_frame(tmp_path, name, rate, frames):
    path = write_numbered(tmp_path / name, 32, rate)
    assert shown(path)[: len(frames)] == frames
    assert Video(write_numbered(tmp_path / name, 22, 25, bf=0), 8).frames == 8  # the last at 0.875 of 0.88 seconds


@pytest.mark.parametrize("frames", [24, 25, 26])
def test_rounded_times_add_no_frame_at_the_end(frames):
    packets = [Packet(round(i * 1000 / 24), None, 42) for i in range(frames)]
    index = Index(packets, Fraction(1, 24), Fraction(1, 1000), 3600, False)
    assert index.timeline([0]).sampled(Fraction(24)) == {packet.pts: [k] for k, packet in enumerate(packets)}


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.asf"])
@pytest.mark.parametrize("rate, first", [(24, 0), (24, 2), (30, 1), (30, 2)])
def test_rounded_times_may_begin_anywhere(tmp_path, name, rate, first):
    path = write_numbered(tmp_path / name, 40, rate, times=range(first, first + 40), bf=0)
    assert shown(path, rate) == list(range(40))


def test_an_empty_packet_of_an_avi_repeats_a_frame(tmp_path):
    times = [0, 1, 2, 3, 8, 9, 10, 11]  # the muxer fills the gap with empty packets
    assert shown(write_numbered(tmp_path / "a.avi", 8, times=times, bf=0)) == [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
@pytest.mark.parametrize("codec", ["libx265", "libx264"])
@pytest.mark.parametrize("where", ["at an open key frame", "in the middle"])
def test_a_stream_that_begins_with_what_depends_on_missing_frames(tmp_path, codec, suffix, where):
    params = {f"{codec.removeprefix('lib')}-params": OPEN}
    whole = write_numbered(tmp_path / f"whole.{suffix}", 60, 24, codec, **params)
    first = keys(whole)[1] if "key" in where else 7
    cut = copied(whole, tmp_path / f"cut.{suffix}", first)
    assert shown(cut) == list(range(12, 60, 3))


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9", "ffv1"])
def test_a_stream_that_begins_with_packets_that_its_decoder_refuses(tmp_path, codec):
    whole = write_numbered(tmp_path / "whole.mkv", 60, 24, codec, g=12)
    assert keys(whole)[1] == 12
    assert shown(copied(whole, tmp_path / "cut.mkv", 7)) == list(range(12, 60, 3))


@pytest.mark.parametrize(
    "suffix, codec, options",
    [("avi", "libx264", {"x264-params": OPEN}), ("h264", "libx264", {"x264-params": OPEN})]
    + [
        (suffix, "mpeg2video", {"g": 12, "bf": 2}) for suffix in ("avi", "mpg")
    ],  # its decoder leaves leading pictures out
)
def test_the_same_without_presentation_times(tmp_path, suffix, codec, options):
    whole = write_numbered(tmp_path / f"whole.{suffix}", 60, 24, codec, **options)
    for first in (keys(whole)[1], 7):
        assert shown(copied(whole, tmp_path / f"cut.{suffix}", first)) == list(range(12, 60, 3))


def test_a_frame_that_a_stream_without_presentation_times_loses_ends_it_there(tmp_path, monkeypatch):
    from lgf_trainer.data import video as module

    real = module.decoded
    monkeypatch.setattr(module, "decoded", lambda *args: (f for n, f in enumerate(real(*args)) if n != 30))
    video, seen = Video(write_numbered(tmp_path / "a.avi", 48), 8), []
    assert video.frames == 48
    with pytest.raises(VideoError, match=r"cannot be decoded beyond 2\.0 seconds"):
        for start, frames in video.windows([0, 1, 16, 30], 9, Fit.stretch(video.size, (64, 96))):
            assert numbers(frames) == list(range(start, start + 9))
            seen.append(start)
    assert seen == [0, 1]


def test_a_picture_of_vp8_that_is_never_shown_is_no_damage(tmp_path):
    """A picture that later ones refer to (an alternate reference) has a packet and a time of its own."""
    whole = write_numbered(tmp_path / "whole.webm", 16, codec="libvpx")
    with av.open(str(whole)) as read, av.open(str(tmp_path / "a.webm"), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(p for p in read.demux(video=0) if p.size):
            content = bytearray(bytes(packet))
            if number == 5:
                content[0] &= ~0x10  # show_frame
            copy = av.Packet(bytes(content))
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
            copy.is_keyframe = packet.is_keyframe
            write.mux(copy)
    assert shown(tmp_path / "a.webm") == [0, 1, 2, 3, 4, 4, *range(6, 16)]


@pytest.mark.parametrize("second", [0, 20, 3000])
def test_joined_transport_streams_are_refused(tmp_path, second):
    """Of what begins again FFmpeg tells the old times, of what begins earlier the next day's, of what begins later a pause."""
    first = write_numbered(tmp_path / "a.ts", 60, 24, times=range(2000, 2060))
    other = write_numbered(tmp_path / "b.ts", 30, 24, times=range(second, second + 30))
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + other.read_bytes())
    with pytest.raises(VideoError, match=r"timestamps that start again or leap after 2\.\d seconds.*files were joined"):
        Video(tmp_path / "joined.ts", 8)


def test_a_long_pause_is_one_in_a_file_that_cannot_be_joined(tmp_path):
    path = write_numbered(tmp_path / "a.mkv", 3, times=[0, 160, 161], bf=0)
    assert shown(path) == [0] * 160 + [1, 2]
    with pytest.raises(VideoError, match=r"leap after 0\.0 seconds"):
        Video(write_numbered(tmp_path / "b.mkv", 3, times=[0, 30000, 30001], bf=0), 8)


def with_streams(path: Path, *streams: tuple[str, list[int], dict]) -> Path:
    """A file with several video streams: (codec, numbers of the pictures, attributes of the stream)."""
    with av.open(str(path), "w") as container:
        made = []
        for codec, _, attributes in streams:
            stream = container.add_stream(codec, rate=8)
            stream.height, stream.width = 64, 96
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for name, value in attributes.items():
                setattr(stream, name, value)
            made.append(stream)
        for stream, (_, pictures, _) in zip(made, streams, strict=True):
            for time, number in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(numbered_picture(number).numpy(), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 8)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def test_streams_that_are_no_videos_by_what_they_say():
    for name in ("attached_pic", "timed_thumbnails", "still_image"):
        dispositions = av.stream.Disposition[name], av.stream.Disposition(0)
        streams = [SimpleNamespace(index=i, disposition=it, codec_context=True) for i, it in enumerate(dispositions)]
        container = SimpleNamespace(streams=SimpleNamespace(video=streams))
        assert moving_stream(container) == 1


COVER = {"disposition": av.stream.Disposition.attached_pic}
MOVING = list(range(1, 20))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_still_beside_the_video_is_not_taken_for_it(tmp_path, suffix):
    path = with_streams(tmp_path / f"a.{suffix}", ("mjpeg", [50], {}), ("libx264", MOVING, {}))
    assert shown(path) == MOVING
    assert shown(with_streams(tmp_path / f"b.{suffix}", ("mjpeg", [50], {}))) == [50]


def test_a_cover_picture_is_not_taken_for_the_video(tmp_path):
    assert shown(with_streams(tmp_path / "a.mp4", ("mjpeg", [50], COVER), ("libx264", MOVING, {}))) == MOVING
    alone = with_streams(tmp_path / "b.mp4", ("mjpeg", [50], COVER))
    with pytest.raises(VideoError, match="no video stream"):
        Video(alone, 8)


def test_of_several_videos_the_default_one_is_taken(tmp_path):
    none, default = av.stream.Disposition(0), av.stream.Disposition.default
    streams = ("libx264", MOVING[::-1], {"disposition": none}), ("libx264", MOVING, {"disposition": default})
    assert shown(with_streams(tmp_path / "a.mkv", *streams)) == MOVING
    assert shown(with_streams(tmp_path / "b.mkv", *((*stream[:2], {}) for stream in streams))) == MOVING[::-1]


def test_numbers_are_read_back():
    pictures = np.stack([numbered_picture(i).numpy() for i in range(64)])
    import torch

    assert numbers(torch.from_numpy(pictures).permute(0, 3, 1, 2)) == list(range(64))


@pytest.mark.parametrize("first, kept", [(3, 45), (3, 30), (0, 20)])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_frames_that_an_edit_list_cuts_away_are_not_shown(tmp_path, b_frames, first, kept):
    """With B-frames those behind the end are read, marked to be discarded."""
    path = write_numbered(tmp_path / "a.mp4", 48, bf=b_frames)
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # version and number of entries, then length, beginning, rate
    length, beginning = struct.unpack_from(">Ii", content, entry)
    with av.open(str(path)) as container:
        frame = int(1 / (8 * container.streams.video[0].time_base))
    struct.pack_into(">Ii", content, entry, length * kept // 48, beginning + first * frame)
    path.write_bytes(content)
    assert shown(path) == list(range(first, first + kept))
