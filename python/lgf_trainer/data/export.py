"""Videos and pictures as bytes of a file, which can be written atomically, and the metadata of a video."""

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..runtime.errors import explained

Frames = NDArray[np.uint8]  # (N, height, width, 3)

QUALITY = "12"  # x264's constant rate factor; 0 is lossless, 18 is where differences become visible


def encode_video(frames: Frames, fps: float, made_with: dict[str, Any]) -> bytes:
    """Return an mp4 (H.264) of frames with even height and width, which carries `made_with` as its comment."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = json.dumps(made_with, sort_keys=True)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread and no B-frames: otherwise x264's bytes for the same frames vary between machines and runs.
        stream.options = {"crf": QUALITY, "bf": "0"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_video(path: Path) -> Frames:
    """Return all frames of a file."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def made_with(path: Path) -> dict[str, Any]:
    """Return what `encode_video` was told; refuse a file that is none of its own."""
    foreign, way_out = f"{path} was not made by lgf sample, or is damaged", "Remove it, or use another folder"
    with (
        explained(foreign, av.error.FFmpegError, KeyError, ValueError, way_out=way_out),
        av.open(str(path)) as container,
    ):
        return json.loads(container.metadata["comment"])


def frame_grid(rows: dict[str, Frames], columns: int) -> bytes:
    """Return a PNG with one row for each video, of `columns` frames from the first to the last at equal distances."""
    count, height, width = next(iter(rows.values())).shape[:3]
    chosen = np.linspace(0, count - 1, min(columns, count)).round().astype(int)
    gap, head = 4, 16
    size = (len(chosen) * (width + gap) - gap, len(rows) * (height + head))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, frames) in enumerate(rows.items()):
        top = row * (height + head)
        for column, index in enumerate(chosen):
            left = column * (width + gap)
            pen.text((left + 2, top + 2), f"{name}, frame {index}" if column == 0 else str(index), fill="black")
            sheet.paste(Image.fromarray(frames[index]), (left, top + head))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def side_by_side(videos: Sequence[Frames]) -> Frames:
    """Join videos of one size and length, left to right."""
    return np.concatenate(videos, axis=2)
