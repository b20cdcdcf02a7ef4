"""Cache of the teacher's logits, for a teacher of your own: here a DINO on the frames of videos.

    python examples/cache_teacher.py clips/*.mp4 --teacher facebook/dinov2-base --grid 30 45 --frames 49 --output logits

Logits take 49 float16 numbers a token, whatever the teacher's width, and save two thirds of the loss's products. In training:

    cache = load_file("logits/clip.safetensors")["forward"]                      # (T - 1, rows, columns, 49)
    loss = lgf.lgf_kl_loss_from_logits(projected, cache[None])

One cache serves both directions of the loss: `direction="backward", logits_direction="forward"`.
"""

import argparse
from pathlib import Path

import torch
from lgf_trainer.data.video import read_video
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel

import lgf_kernels as lgf

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that it was trained on


@torch.no_grad()
def features(teacher: nn.Module, frames: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patch features (T, rows, columns, C) of frames (T, 3, H, W) in [-1, 1]."""
    rows, columns = grid
    mean, deviation = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (MEAN, DEVIATION))
    frames = (frames / 2 + 0.5 - mean) / deviation
    tokens = torch.cat([teacher(frame[None]).last_hidden_state for frame in frames])
    return tokens[:, -rows * columns :].unflatten(1, grid)  # behind the class token and the registers


def main() -> None:
    options = parsed_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = AutoModel.from_pretrained(options.teacher).to(device).eval().requires_grad_(False)
    options.output.mkdir(parents=True, exist_ok=True)
    grid, patch = tuple(options.grid), teacher.config.patch_size
    size = (grid[0] * patch, grid[1] * patch)  # the teacher's patches are the student's tokens
    for path in options.videos:
        frames = read_video(path, size, options.fps, at_least=options.frames, at_most=options.frames).to(device)
        logits = lgf.local_gram_flow(features(teacher, frames, grid)[None], window=options.window)[0]
        save_file({"forward": logits.half().cpu().contiguous()}, options.output / f"{path.stem}.safetensors")
        print(f"{path.stem}: {tuple(logits.shape)}")


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument(
        "--teacher", default="facebook/dinov2-base", help="a DINOv2 or DINOv3: name on the hub, or folder"
    )
    parser.add_argument("--grid", nargs=2, type=int, default=(30, 45), help="rows and columns of the student's tokens")
    parser.add_argument("--frames", type=int, default=49, help="of the projected features")
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--output", required=True, type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
