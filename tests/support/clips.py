"""Video files that tests write, and the folder of real ones."""

import os
from fractions import Fraction
from pathlib import Path

import torch

REAL = Path(os.environ.get("LGF_TEST_VIDEOS", Path(__file__).parents[3] / "shared" / "data"))
if "LGF_TEST_VIDEOS" in os.environ and not REAL.is_dir():
    raise NotADirectoryError(
        f"LGF_TEST_VIDEOS names {REAL}, which is no directory: tests of real videos would be skipped"
    )


def write_frames(
    path: Path, frames, times, time_base, *, format=None, aspect=None, options=None, metadata=None
) -> Path:
    """Write frames (height, width, 3) of uint8, each shown from its time (in time bases) on."""
    import av

    with av.open(str(path), "w", format=format, options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("libx264", rate=round(1 / (time_base * (times[1] - times[0]))))
        stream.height, stream.width = frames[0].shape[:2]
        stream.options = {"qp": "0", "g": "8"}  # nothing is lost, and what follows damage does not matter long
        stream.codec_context.time_base = stream.time_base = time_base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels.contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_clip(path: Path, frames: int, rate: int = 8, shift: int = 2, seed: int = 0, **options) -> Path:
    """Write a smooth random picture of 96 x 160 pixels that moves to the right."""
    coarse = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(coarse, size=(96, 160), mode="bicubic").clamp(0, 1)[0]
    pixels = [(255 * picture.roll(shift * t, 2)).byte().permute(1, 2, 0) for t in range(frames)]
    return write_frames(path, pixels, range(frames), Fraction(1, rate), **options)


def write_numbered(path: Path, frames: int, rate: int = 8, codec: str = "libx264", times=None, **options) -> Path:
    """Write pictures that bear their numbers, with what the encoder chooses by itself, B-frames included."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i).numpy(), format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered_picture(number: int) -> torch.Tensor:
    """A picture (64, 96, 3) of uint8: the bits of a number in its upper half, a moving stripe below."""
    picture = torch.full((64, 96, 3), 40, dtype=torch.uint8)
    for bit in range(6):
        if number >> bit & 1:
            picture[:32, 16 * bit : 16 * bit + 16] = 210
    picture[40:, (left := 3 * number % 80) : left + 16] = 130
    return picture


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers in frames (N, 3, 64, 96) made by `numbered_picture`."""
    blocks = frames[:, :, 8:24].float().mean((1, 2)).unflatten(1, (6, 16))[:, :, 4:12].mean(-1)
    return ((blocks > 125) * 2 ** torch.arange(6)).sum(1).tolist()
