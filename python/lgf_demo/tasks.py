"""Two tasks of the demo: generated clips, or a video file."""

from pathlib import Path

import torch
from lgf_trainer.data.video import VideoError, read_video
from lgf_trainer.evaluation.motion import TOKEN, end_point_error, expected_motion, motion_of, patch_descriptors
from torch import Tensor

from lgf_kernels import lgf_kl_loss, local_gram_flow

from .clips import Clip, make_clip, tracks
from .experiment import Task
from .model import encode
from .oracle import oracle_features
from .training import Split
from .video import liveliest_part, warping_psnr

#: Frames of a video that are used, a minute of it. All its windows are held at once, and an hour of them fills the memory.
LONGEST = 480
EPE, KL, PSNR = "EPE (tokens)", "KL to the teacher", "PSNR (dB)"


def generated_task(seed: int, grid: tuple[int, int, int], train: int, held_out: int) -> Task:
    """Return articulated clips with an oracle teacher, judged by the end-point error over the moving tokens."""
    seeds = torch.arange(train + held_out) + 10_000 * seed
    clips = [make_clip(int(s), *grid) for s in seeds]
    judged = clips[train:]
    motion = torch.stack([clip.motion for clip in judged])
    moving = torch.stack([clip.moving for clip in judged])
    split = split_of(judged)
    fused = sum(local_gram_flow(teacher) for teacher in split.teachers) / len(split.teachers)
    teacher = expected_motion(fused)

    def error(predicted: Tensor) -> float:
        return end_point_error(predicted, motion, moving)

    return Task(
        train=split_of(clips[:train]),
        held_out=split,
        video=torch.stack([clip.video for clip in judged]),
        measures={EPE: lambda features: error(motion_of(features))},
        context={"no motion": {EPE: error(torch.zeros_like(motion))}, "the teacher itself": {EPE: error(teacher)}},
        reference=("true motion", motion),
        teacher=teacher,
        drawn=moving,
    )


def split_of(clips: list[Clip], points: int = 0) -> Split:
    """Return clips with the oracle's features, and with the true tracks of some points of each."""
    forward, backward = zip(*[oracle_features(clip) for clip in clips], strict=True)
    found = [tracks(clip, points, seed) for seed, clip in enumerate(clips)] if points else []
    return Split(
        encode(torch.stack([clip.video for clip in clips])),
        (torch.stack(forward), torch.stack(backward)),
        {name: torch.stack([of_clip[name] for of_clip in found]) for name in (found[0] if found else ())},
    )


def video_task(path: Path, grid: tuple[int, int, int], share_held_out: float = 0.25) -> Task:
    """Return windows of a video, its end held out, with pixel descriptors as the teacher, judged by KL and by warping.

    Raises:
        VideoError: the file cannot be read or is too short for a training and a held-out window.
    """
    frames, height, width = grid
    size = (height * TOKEN, width * TOKEN)
    whole = read_video(path, (2 * size[0], 2 * size[1]), at_least=3 * frames, at_most=LONGEST)
    video = liveliest_part(whole, size)
    descriptors = patch_descriptors(video)
    first_held_out = min(round(len(video) * (1 - share_held_out)), len(video) - frames)

    def windows(x: Tensor, stride: int) -> Tensor:
        return torch.stack([x[start : start + frames] for start in range(0, len(x) - frames + 1, stride)])

    train = Split(encode(windows(video[:first_held_out], 1)), (windows(descriptors[:first_held_out], 1),))
    pixels = windows(video[first_held_out:], frames - 1)
    held_out = Split(encode(pixels), (windows(descriptors[first_held_out:], frames - 1),))
    teacher = motion_of(held_out.teachers[0])
    still = torch.zeros_like(teacher)
    if not (teacher.norm(dim=-1) > 0.1).any():
        raise VideoError(f"nothing moves in the last part of {path}: give a video with motion")
    return Task(
        train=train,
        held_out=held_out,
        video=pixels,
        measures={
            KL: lambda features: lgf_kl_loss(features, held_out.teachers[0]).item(),
            PSNR: lambda features: warping_psnr(pixels, motion_of(features)),
        },
        context={
            "no motion": {PSNR: warping_psnr(pixels, still)},
            "the teacher itself": {KL: 0.0, PSNR: warping_psnr(pixels, teacher)},
        },
        reference=("teacher's motion", teacher),
        teacher=teacher,
        drawn=teacher.norm(dim=-1) > 0.25,
    )
