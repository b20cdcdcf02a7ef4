"""Reading videos: frames at an exact rate, at the size of a model, a window at a time.

FFmpeg (through PyAV) decodes. Timestamps, not frame numbers, decide which frame stands for which moment, so that constant
and variable frame rates come out right. Nothing here holds more than one window of a video.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ..runtime.errors import TrainerError

Size = tuple[int, int]  # height, width in pixels

LONGEST = 48 * 3600  # seconds; beyond it timestamps are taken for damaged, before a list is made of their frames

#: For titles and the like that are not UTF-8. PyAV 19 takes them as they are; before, it had to be told to.
LENIENT = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


class VideoError(TrainerError):
    """A video that cannot be used; the message says why and what to do."""


class Fit(NamedTuple):
    """How a picture becomes one of another size: it is resized, then its centre is cut out."""

    source: Size
    resized: Size
    size: Size

    @classmethod
    def cover(cls, source: Size, size: Size) -> "Fit":
        """Keep the aspect ratio, and lose what sticks out on two sides."""
        scale = max(Fraction(s, o) for s, o in zip(size, source, strict=True))
        height, width = (max(s, round(o * scale)) for s, o in zip(size, source, strict=True))
        return cls(source, (height, width), size)

    @classmethod
    def stretch(cls, source: Size, size: Size) -> "Fit":
        """Keep the whole picture, and give up its aspect ratio."""
        return cls(source, size, size)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float] | None:
        """A box of the source as one of the result, or None if nothing of it is left there."""
        (top, left), (height, width) = self._corner(), self.size
        scale_y, scale_x = (r / s for r, s in zip(self.resized, self.source, strict=True))
        x0, x1 = (min(max(x * scale_x - left, 0.0), float(width)) for x in (x0, x1))
        y0, y1 = (min(max(y * scale_y - top, 0.0), float(height)) for y in (y0, y1))
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def cut(self, resized: Tensor) -> Tensor:
        """The centre (height, width, ...) of a resized picture."""
        (top, left), (height, width) = self._corner(), self.size
        return resized[top : top + height, left : left + width]

    def _corner(self) -> Size:
        return (self.resized[0] - self.size[0]) // 2, (self.resized[1] - self.size[1]) // 2


class Video:
    """A video file as frames at a fixed rate: frame k is the one on screen k / rate seconds after the first.

    Args:
        path: the file, or its name in messages if `open` is given.
        rate: frames a second. A frame of a slower video stands for several, of a faster one some are left out.
        open: opens it instead, in binary and seekable, such as a member of an archive.

    Attributes:
        frames: how many frames it has at that rate, by its timestamps.
        size: height and width in pixels as displayed: upright, and with square pixels.
        cut_off: the end of the file is missing.

    Raises:
        VideoError: no such file, or nothing that FFmpeg can decode.
    """

    def __init__(
        self, path: str | PathLike, rate: float, open: Callable[[], AbstractContextManager[BinaryIO]] | None = None
    ):
        self.path = Path(path)
        if open is None and not self.path.is_file():
            raise VideoError(f"{path}: no such file. Give the path of a video, such as clip.mp4")
        self._open = open or (lambda: self.path.open("rb"))
        self._rate = rate
        with self._stream() as stream:
            timeline = _timeline(stream)
        if timeline.end > LONGEST:
            raise VideoError(
                f"{self.path} is damaged: its frames are said to last for {float(timeline.end / 3600):.0f} hours"
            )
        self._numbered, self.cut_off = timeline.numbered, timeline.cut_off
        self._shown = timeline.sampled(Fraction(rate))
        self.frames = sum(map(len, self._shown.values()))
        with self._stream() as stream:
            self.size = next((_displayed_size(frame, stream) for frame in _decoded(stream)), None)
        if self.size is None:
            raise VideoError(f"{self.path} has no frame that can be decoded. Convert it to .mp4, or leave it out")

    def windows(self, starts: Sequence[int], length: int, fit: Fit) -> Iterator[tuple[int, Tensor]]:
        """Windows of `length` frames from ascending `starts`: (start, (length, 3, height, width) of uint8).

        Raises:
            VideoError: the file is damaged. The windows before the damage have been given out by then.
        """
        pending, kept = deque(starts), {}
        for index, pixels in self._frames(fit, {k for start in starts for k in range(start, start + length)}):
            kept[index] = pixels
            if index + 1 == pending[0] + length:
                start = pending.popleft()
                yield start, torch.stack([kept[k] for k in range(start, start + length)])
                kept = {k: v for k, v in kept.items() if pending and k >= pending[0]}

    def _frames(self, fit: Fit, wanted: set[int]) -> Iterator[tuple[int, Tensor]]:
        """The wanted frames in order, as (index, (3, height, width) of uint8)."""
        due = deque(sorted(wanted))
        shown = {key: [k for k in indices if k in wanted] for key, indices in self._shown.items()}
        reformatter = VideoReformatter()
        with self._stream() as stream:
            stream.thread_type = "AUTO"
            for number, frame in enumerate(_decoded(stream)):
                if not due:
                    return
                indices = shown.pop(number if self._numbered else frame.pts, None)
                if not indices:
                    continue
                if frame.is_corrupt or indices[0] != due[0]:
                    break
                pixels = _pixels(frame, fit, reformatter)
                for index in indices:
                    due.popleft()
                    yield index, pixels
        if due:
            raise VideoError(
                f"{self.path} is damaged: it cannot be decoded beyond {due[0] / self._rate:.1f} seconds. "
                "Convert it again from its source, or leave it out"
            )

    @contextmanager
    def _stream(self) -> Iterator[av.VideoStream]:
        """The video stream of the opened file, and FFmpeg's errors in our words."""
        try:
            with self._open() as file, av.open(file, **LENIENT) as container:
                if not container.streams.video:
                    raise VideoError(
                        f"{self.path} has no video stream. Give a file with moving pictures, such as an .mp4"
                    )
                yield container.streams.video[0]
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.path} is not a video that FFmpeg can decode ({error.strerror}). Convert it to .mp4"
            ) from error


def read_video(
    path: str | PathLike, size: Size, rate: float = 8.0, at_least: int = 1, at_most: int | None = None
) -> Tensor:
    """The frames of a video, (N, 3, height, width) in [-1, 1], `rate` to the second: all, or the first `at_most`.

    The whole picture is resized to `size`, whatever its aspect ratio.

    Raises:
        VideoError: it cannot be read, or has fewer than `at_least` frames at that rate.
    """
    video = Video(path, rate)
    if video.frames < at_least:
        raise VideoError(
            f"{path} has {video.frames} frames at {rate:g} per second, and {at_least} are needed. "
            f"Give a video of at least {at_least / rate:.1f} seconds"
        )
    length = video.frames if at_most is None else min(video.frames, at_most)
    ((_, frames),) = video.windows([0], length, Fit.stretch(video.size, size))
    return to_signed(frames)


def read_window(settings: Mapping[str, Any], about: Mapping[str, Any]) -> Tensor:
    """The frames of a window of a cache, (frames, 3, height, width) in [-1, 1], as its latents and teachers saw them.

    Args:
        settings: of the cache.
        about: what the window says of itself. Its video must be a file, and where `lgf extract` read it.

    Raises:
        VideoError: it is not, or cannot be read.
    """
    video = Video(about["video"], settings["fps"])
    fit = Fit.cover(video.size, (settings["height"], settings["width"]))
    ((_, frames),) = video.windows([about["start"]], settings["frames"], fit)
    return to_signed(frames)


def to_signed(pixels: Tensor) -> Tensor:
    """Pixels of uint8 as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


class _Timeline(NamedTuple):
    """When each frame of a stream comes on screen, and when the last goes."""

    times: dict[int, Fraction]  # key of the frame -> seconds after the first
    end: Fraction
    tick: Fraction  # timestamps are rounded to multiples of it
    numbered: bool  # the keys are the numbers of the frames, because the file does not say their timestamps
    cut_off: bool

    def sampled(self, rate: Fraction) -> dict[int, list[int]]:
        """Key of a frame -> the frames at a fixed rate that it stands for."""
        keys, times = list(self.times), list(self.times.values())
        shown: dict[int, list[int]] = {}
        for k in range(math.ceil(self.end * rate)):
            on_screen = bisect_right(times, k / rate + self.tick / 2) - 1
            shown.setdefault(keys[on_screen], []).append(k)
        return shown


def _timeline(stream: av.VideoStream) -> _Timeline:
    """Read from the packets alone: nothing is decoded."""
    announced = [
        _Packet(p.pts, p.duration, p.is_corrupt, p.is_discard) for p in stream.container.demux(stream) if p.size
    ]
    packets = [p for p in announced if not p.corrupt and not p.discard]
    cut_off = any(p.corrupt for p in announced) or len(announced) < stream.frames
    interval = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
    tick = stream.time_base
    if any(p.pts is None for p in packets):
        times = {number: number * interval for number in range(len(packets))}
        return _Timeline(times, len(packets) * interval, tick, True, cut_off)
    packets.sort(key=lambda p: p.pts)
    times = {p.pts: (p.pts - packets[0].pts) * tick for p in packets}
    shown = packets[-1].duration * tick if packets and packets[-1].duration else interval
    return _Timeline(times, max(times.values(), default=-shown) + shown, tick, False, cut_off)


class _Packet(NamedTuple):
    """What is asked of a packet; the packets themselves, kept together, would be the whole file in memory."""

    pts: int | None
    duration: int | None
    corrupt: bool
    discard: bool


def _decoded(stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of a stream up to its end, or to where it is damaged."""
    try:
        yield from stream.container.decode(stream)
    except av.error.FFmpegError:
        return


def _displayed_size(frame: av.VideoFrame, stream: av.VideoStream) -> Size:
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    return (width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, width)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise, from the picture as it is stored to how it is to be shown; telephones store them sideways."""
    return round(frame.rotation / 90) % 4


def _pixels(frame: av.VideoFrame, fit: Fit, reformatter: VideoReformatter) -> Tensor:
    """The frame as (3, height, width) of uint8. The mean over the area of a pixel, or bilinear where it is enlarged."""
    turns = _quarter_turns(frame)
    height, width = reversed(fit.resized) if turns % 2 else fit.resized
    stored = reformatter.reformat(frame, width, height, format="rgb24", interpolation="AREA").to_ndarray()
    return fit.cut(torch.from_numpy(stored).rot90(turns)).permute(2, 0, 1).contiguous()
