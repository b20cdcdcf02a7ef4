"""Reading videos: frames at an exact rate, at the size of a model, a window at a time.

FFmpeg (through PyAV) decodes. Timestamps, not frame numbers, decide which frame stands for which moment, so that constant
and variable frame rates come out right. Nothing here holds more than one window of a video.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import av
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ..runtime.errors import TrainerError, explained
from .fit import Fit, Size
from .frames import displayed_size, pixels, stream_unsupported_reason, unsupported_reason
from .timeline import Index, TimelineError, decoded, moving_stream, opened


class VideoError(TrainerError):
    """A video that cannot be used; the message says why and what to do."""


class Video:
    """A video file as frames at a fixed rate: frame k is the one on screen k / rate seconds after the first.

    Args:
        path: the file, or its name in messages if `open` is given.
        rate: frames a second. A frame of a slower video stands for several, of a faster one some are left out.
        open: opens it instead, in binary and seekable, such as a member of an archive.

    Attributes:
        frames: how many frames it has at that rate, by its timestamps.
        size: height and width in pixels as displayed: upright, and with square pixels.
        own_rate: frames a second in the file, on average, as it says; None if it does not.
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
        self._open = (lambda: self.path.open("rb")) if open is None else open
        self._rate = rate
        self._stream_index: int | None = None
        with self._container() as container:
            self._stream_index = moving_stream(container)
        if self._stream_index is None:
            raise VideoError(f"{self.path} has no video stream. Give a file with moving pictures, such as an .mp4")
        with self._stream() as stream:
            index = Index.read(stream)
        self._numbered, self.cut_off = index.numbered, index.cut_off
        with self._stream() as stream:
            frames = (frame for frame in decoded(stream, self._numbered) if not frame.is_corrupt)
            first = next(frames, None)
            if first is None:
                raise VideoError(f"{self.path} has no frame that can be decoded. Convert it to .mp4, or leave it out")
            self._aspect = float(stream.sample_aspect_ratio or 1)
            self.own_rate = float(stream.average_rate) if stream.average_rate else None
            if reason := stream_unsupported_reason(stream) or unsupported_reason(first):
                raise VideoError(f"{self.path} cannot be used: {reason}")
            self.size = displayed_size(first, self._aspect)
            shown = [first.pts, *(frame.pts for frame in frames)] if self._numbered else [first.pts]
        try:
            timeline = index.timeline(shown)
        except TimelineError as error:
            raise VideoError(f"{self.path} {error}") from error
        self._shown = timeline.sampled(Fraction(rate))
        self.frames = sum(map(len, self._shown.values()))
        # Earlier versions had FFmpeg make up what a file does not say, and took all times for rounded by half a tick.
        before = {} if self._numbered else timeline._replace(slack=timeline.tick / 2).sampled(Fraction(rate))
        self._reread = {k for key, indices in self._shown.items() for k in set(indices) - set(before.get(key, ()))}

    def reread(self, start: int, length: int) -> bool:
        """Return whether earlier versions may have shown other frames in a window."""
        return not self._reread.isdisjoint(range(start, start + length))

    def windows(self, starts: Sequence[int], length: int, fit: Fit) -> Iterator[tuple[int, Tensor]]:
        """Windows of `length` frames from ascending `starts`: (start, (length, 3, height, width) of uint8).

        Raises:
            VideoError: the file is damaged. The windows before the damage have been given out by then.
        """
        pending, kept = deque(starts), {}
        for index, picture in self._frames(fit, {k for start in starts for k in range(start, start + length)}):
            kept[index] = picture
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
            for frame in decoded(stream, self._numbered):
                if not due:
                    return
                indices = shown.pop(frame.pts, None)
                if not indices:
                    continue
                if frame.is_corrupt or indices[0] != due[0]:
                    break
                self._check(frame, indices[0])
                picture = pixels(frame, fit, reformatter)
                for index in indices:
                    due.popleft()
                    yield index, picture
        if due:
            raise VideoError(
                f"{self.path} is damaged: it cannot be decoded beyond {due[0] / self._rate:.1f} seconds. "
                "Convert it again from its source, or leave it out"
            )

    def _check(self, frame: av.VideoFrame, index: int) -> None:
        reason = unsupported_reason(frame)
        if reason is None and (size := displayed_size(frame, self._aspect)) != self.size:
            reason = f"its pictures become {size[1]} x {size[0]}, after {self.size[1]} x {self.size[0]}. Split it there"
        if reason:
            raise VideoError(f"{self.path} cannot be used beyond {index / self._rate:.1f} seconds: {reason}")

    @contextmanager
    def _stream(self) -> Iterator[av.VideoStream]:
        """The video stream of the opened file."""
        with self._container() as container:
            yield container.streams[self._stream_index]

    @contextmanager
    def _container(self) -> Iterator[InputContainer]:
        """The opened file, and FFmpeg's errors in our words."""
        what, kinds = f"{self.path} is not a video that FFmpeg can decode", (av.error.FFmpegError, OSError)
        with explained(what, *kinds, way_out="Convert it to .mp4", error=VideoError):
            with self._open() as file, opened(file) as container:
                yield container


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
    """
    video = Video(about["video"], settings["fps"])
    fit = Fit.cover(video.size, (settings["height"], settings["width"]))
    ((_, frames),) = video.windows([about["start"]], settings["frames"], fit)
    return to_signed(frames)


def frames_if_there(settings: Mapping[str, Any], about: Mapping[str, Any]) -> Tensor | None:
    """The same, or None if the video is no longer a file where `lgf extract` read it."""
    return read_window(settings, about) if Path(about["video"]).is_file() else None


def to_signed(pixels: Tensor) -> Tensor:
    """Pixels of uint8 as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
