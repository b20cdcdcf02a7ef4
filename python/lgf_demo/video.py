"""Crop of a video with the most motion, and the prediction of its frames by that motion."""

import torch
from lgf_trainer.evaluation.motion import TOKEN
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate


def liveliest_part(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the crop of a video (T, 3, height, width) to `size` in which the pixels change most, the same for all frames."""
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
    """Return PSNR in dB of `warp_back` over clips (N, T, 3, 8H, 8W) with motion (N, T-1, H, W, 2); pixels span 2."""
    errors = [(warp_back(v, m) - v[:-1]).square().mean() for v, m in zip(video, motion, strict=True)]
    return (10 * torch.log10(4 / torch.stack(errors).mean())).item()
