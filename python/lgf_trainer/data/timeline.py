"""When each frame of a video is on screen, from the timestamps of its packets.

Some containers (.avi, .asf, raw streams) hold no presentation times, and FFmpeg would make them up from the order of
decoding, which B-frames change. PyAV asks it to; `opened` does not. Without presentation times the frames are decoded
once, and the k-th that is shown gets the k-th decoding time, or the k-th multiple of the frame interval.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import av
from av.container import Flags, InputContainer
from av.format import Flags as FormatFlags
from av.stream import Disposition

#: For titles and the like that are not UTF-8. PyAV 19 takes them as they are; before, it had to be told to.
LENIENT = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

STILLS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
REORDERED = 16  # frames by which decoding may run ahead of display, at most
FASTEST = 1000  # frames a second
LONGEST = 48 * 3600  # seconds of a video; more are a sign of damaged timestamps
LONGEST_FRAME = 3600  # seconds; a longer gap is a sign of timestamps that start again,
LONGEST_IN_A_STREAM = 10  # and in formats that may be joined byte by byte (MPEG-TS), as in FFmpeg's own programs, this


class TimelineError(Exception):
    """Error for timestamps that make no sense; the message goes after the name of the file."""


@contextmanager
def opened(file: BinaryIO) -> Iterator[InputContainer]:
    """Open a container without letting FFmpeg make up presentation times."""
    with av.open(file, **LENIENT) as container:
        container.flags &= ~Flags.gen_pts.value
        yield container


def moving_stream(container: InputContainer) -> int | None:
    """Return the index of the stream that is the video, or None; packets may have been read then.

    Cover pictures and thumbnails are no videos, and a single picture is one only where there is nothing else. Of
    several the default one is taken, else the first.
    """
    videos = (stream for stream in container.streams.video if stream.codec_context)
    streams = [stream for stream in videos if not stream.disposition & STILLS]
    if len(streams) < 2:
        return streams[0].index if streams else None
    streams.sort(key=lambda stream: not stream.disposition & Disposition.default)
    packets: Counter[int] = Counter()
    for packet in container.demux(streams):
        packets[packet.stream_index] += packet.size > 0
        if packets[streams[0].index] > 1:
            break
    return next((stream.index for stream in streams if packets[stream.index] > 1), streams[0].index)


def decoded(stream: av.VideoStream, numbered: bool = False) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream up to its end, or to where it is damaged.

    Packets before the first frame may fail: a stream that is cut out of another may begin with pictures that depend on
    missing ones. `numbered`: `pts` of a frame is the number of its packet, for streams without presentation times.
    """
    begun, number = False, 0
    try:
        for packet in stream.container.demux(stream):
            if numbered and packet.size:
                packet.pts, number = number, number + 1
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if begun:
                    return
                continue
            for frame in frames:
                begun = True
                yield frame
    except av.error.FFmpegError:
        return


class Timeline(NamedTuple):
    """When each frame of a stream comes on screen, and when the last goes, in seconds."""

    times: dict[int, Fraction]  # `pts` of the frame -> time after the first
    end: Fraction
    tick: Fraction  # the unit of timestamps
    slack: Fraction  # by which times may be late, because the file rounds them

    def sampled(self, rate: Fraction) -> dict[int, list[int]]:
        """Return `pts` of a frame -> the frames at a fixed rate that it stands for."""
        keys, times = list(self.times), list(self.times.values())
        shown: dict[int, list[int]] = {}
        end = self.end - (self.tick if self.slack else 0)  # the sum of two numbers that are rounded
        for k in range(math.ceil(end * rate)):
            on_screen = bisect_right(times, k / rate + self.slack) - 1
            shown.setdefault(keys[on_screen], []).append(k)
        return shown


class Packet(NamedTuple):
    """The properties of a packet that count; the packets themselves would be the whole file in memory."""

    pts: int | None
    dts: int | None
    duration: int | None


class Index(NamedTuple):
    """The packets of a stream that are to be shown, in the order of decoding."""

    packets: list[Packet]
    interval: Fraction  # seconds, by the announced frame rate
    tick: Fraction  # seconds, the unit of timestamps
    longest_frame: int  # seconds
    cut_off: bool

    @classmethod
    def read(cls, stream: av.VideoStream) -> "Index":
        """Read it without decoding anything."""
        shown, announced, corrupt = [], 0, False
        for packet in stream.container.demux(stream):
            if packet.size:
                announced += 1
                corrupt |= packet.is_corrupt
                if not packet.is_corrupt and not packet.is_discard and not _is_invisible(packet, stream):
                    shown.append(Packet(packet.pts, packet.dts, packet.duration))
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        if any(packet.dts is None and packet.pts is None for packet in shown):
            # FFmpeg gives 25 to raw streams, whatever they say; what is no rate may be their unit of time.
            rate = own if (own := stream.codec_context.framerate) and own <= FASTEST else rate
        joinable = stream.container.format.flags & FormatFlags.ts_discont.value
        longest = LONGEST_IN_A_STREAM if joinable else LONGEST_FRAME
        return cls(shown, 1 / rate, stream.time_base, longest, corrupt or announced < stream.frames)

    @property
    def numbered(self) -> bool:
        """Whether presentation times are missing, so that frames are told apart by the numbers of their packets."""
        return any(packet.pts is None for packet in self.packets)

    def timeline(self, decoded: list[int]) -> Timeline:
        """Return the timeline that begins with the first frame that can be decoded.

        Args:
            decoded: `pts` of frames as they come out of the decoder: of all if `numbered`, else of the first at least.

        Raises:
            TimelineError: the timestamps start again, or the video would last for days.
        """
        times = self._counted(decoded) if self.numbered else self._timed(decoded[0])
        moments = list(times.values())
        if moments and moments[-1] > LONGEST:
            raise TimelineError(f"is damaged: its frames are said to last for {float(moments[-1] / 3600):.0f} hours")
        for before, after in pairwise(moments):
            if after - before > self.longest_frame:
                self._refuse(before)
        end = moments[-1] + self._last() if moments else Fraction(0)
        return Timeline(
            times, end, self.tick, self._slack(moments, self.packets[0].dts if self.numbered else decoded[0])
        )

    def _timed(self, first: int) -> dict[int, Fraction]:
        """Return the moments of the frames from `first` on, by their own timestamps."""
        self._check_order()
        shown = sorted(packet.pts for packet in self.packets if packet.pts >= first)
        return {pts: (pts - shown[0]) * self.tick for pts in shown}

    def _counted(self, decoded: list[int]) -> dict[int, Fraction]:
        """Return the moments of frames by their order: display has the times of decoding, each later by the same."""
        order = _in_order_of_display(decoded, len(self.packets))
        times = [packet.dts for packet in self.packets]
        if None in times:
            return {number: k * self.interval for k, number in enumerate(order)}
        self._check_order()
        return {number: (time - times[0]) * self.tick for number, time in zip(order, times, strict=False)}

    def _check_order(self) -> None:
        times = [packet.dts for packet in self.packets if packet.dts is not None]
        for before, after in pairwise(times):
            if (before - after) * self.tick > REORDERED * self.interval:
                self._refuse((before - times[0]) * self.tick)

    def _refuse(self, moment: Fraction) -> None:
        raise TimelineError(
            f"has timestamps that start again or leap after {float(moment):.1f} seconds, as if files were joined. "
            "Split it there, or convert it again with FFmpeg, which joins the times"
        )

    def _slack(self, moments: list[Fraction], first: int | None) -> Fraction:
        """Return by how much moments may be late: by their own rounding, and by that of the first timestamp unless it is 0."""
        gaps = {after - before for before, after in pairwise(moments) if after > before}
        if not any(gap % min(gaps) for gap in gaps):  # as in .avi, whose unit is the frame: nothing is rounded
            return Fraction(0)
        return self.tick if first else self.tick / 2

    def _last(self) -> Fraction:
        """Return how long the last frame is shown."""
        if self.numbered:
            return self.interval
        last = max(self.packets, key=lambda packet: packet.pts)
        return last.duration * self.tick if last.duration else self.interval


def _is_invisible(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Return whether a packet of VP8 holds a picture that is only referred to, never shown."""
    return stream.codec_context.name in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def _in_order_of_display(decoded: list[int], packets: int) -> list[int]:
    """Return the numbers of packets as they are shown, beginning with the first that can be decoded.

    What is missing before it, and right after it in the order of decoding (the pictures that lead an open GOP), depends
    on what the file does not hold. What is missing elsewhere is damage, after which no place is certain: numbers below 0,
    which no frame has, stand for all that may come after it.
    """
    lost = set(range(decoded[0] + 1, packets)) - set(decoded)
    leading = decoded[0] + 1
    while leading in lost:
        lost.remove(leading)
        leading += 1
    if not lost:
        return decoded
    certain = max(0, min(lost) - leading - REORDERED)
    return [*decoded[:certain], *range(-1, certain - len(decoded) - len(lost) - 1, -1)]
