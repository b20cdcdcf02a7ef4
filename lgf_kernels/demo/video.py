"""A real video: reading it, its liveliest part, and what its motion is worth for prediction."""

from pathlib import Path

import torch
from lgf_trainer.motion import TOKEN
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate


class VideoError(ValueError):
    """A video file that the demo cannot use; the message says why and what to do."""


def read_video(path: Path, size: tuple[int, int], rate: float = 8.0, at_least: int = 2) -> Tensor:
    """Frames (N, 3, height, width) in [-1, 1], about `rate` per second, of a file that FFmpeg can decode.

    The whole picture is resampled to `size` = (height, width), whatever its aspect ratio.

    Raises:
        VideoError: no such file, not a video, or fewer than `at_least` frames at that rate.
    """
    import av

    if not path.is_file():
        raise VideoError(f"{path}: no such file. Give the path of a video, such as --video clip.mp4")
    height, width = size
    frames, next_time = [], 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream. Give a file with moving pictures, such as an .mp4")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            own_rate = float(stream.average_rate or stream.guessed_rate or rate)
            for index, frame in enumerate(container.decode(stream)):
                if index / own_rate >= next_time:
                    pixels = frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray()
                    frames.append(torch.from_numpy(pixels))
                    next_time += 1 / rate
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path} is not a video that FFmpeg can decode ({error.strerror}). Convert it to .mp4"
        ) from error
    if len(frames) < at_least:
        raise VideoError(
            f"{path} has {len(frames)} frames at {rate:g} per second, and {at_least} are needed. "
            f"Give a video of at least {at_least / rate:.1f} seconds."
        )
    return torch.stack(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def liveliest_part(video: Tensor, size: tuple[int, int]) -> Tensor:
    """The crop of a video (T, 3, height, width) to `size` in which the pixels change most, the same for all frames."""
    change = video.diff(dim=0).abs().mean((0, 1))[None, None]
    score = avg_pool2d(change, size, stride=TOKEN)[0, 0]
    y, x = (int(i) * TOKEN for i in torch.unravel_index(score.argmax(), score.shape))
    return video[:, :, y : y + size[0], x : x + size[1]]


def warp_back(video: Tensor, motion: Tensor) -> Tensor:
    """Predict frames 0..T-2 of (T, 3, 8H, 8W) from the next frame and the motion (T-1, H, W, 2), in tokens, towards it.

    The pixel at p is taken from p + motion(p) in the next frame, with the motion interpolated between tokens.
    """
    height, width = video.shape[2:]
    flow = interpolate(motion.permute(0, 3, 1, 2), size=(height, width), mode="bilinear") * TOKEN
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    where = torch.stack([2 * (x + flow[:, 1]) / width - 1, 2 * (y + flow[:, 0]) / height - 1], -1)
    return grid_sample(video[1:], where, mode="bilinear", padding_mode="border", align_corners=False)


def warping_psnr(video: Tensor, motion: Tensor) -> float:
    """PSNR in dB of `warp_back` over clips (N, T, 3, 8H, 8W) with motion (N, T-1, H, W, 2); pixels span 2."""
    errors = [(warp_back(v, m) - v[:-1]).square().mean() for v, m in zip(video, motion, strict=True)]
    return (10 * torch.log10(4 / torch.stack(errors).mean())).item()
