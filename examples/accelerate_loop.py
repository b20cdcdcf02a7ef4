"""Any video transformer with MoAlign's token relations, its teacher in the loop: accelerate alone.

    accelerate launch examples/accelerate_loop.py --steps 20

Model, teacher and clips are small and random, so that it runs as it is: put yours in their places. The teacher is run in
every step, without gradient, at a lower resolution than the student, whose features are brought to its grid.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from lgf_trainer import AlignedTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss
from torch.utils.data import DataLoader

import lgf_kernels as lgf

FRAMES, ROWS, COLUMNS, CHANNELS = 5, 8, 12, 4  # of the latents, which are the tokens


class VideoTransformer(nn.Module):
    """A denoiser of latents (B, T, H, W, C) whose `blocks` put out tokens (B, T * H * W, width)."""

    def __init__(self, width: int = 32, depth: int = 3):
        super().__init__()
        self.embed, self.time, self.head = nn.Linear(CHANNELS, width), nn.Linear(1, width), nn.Linear(width, CHANNELS)
        self.position = nn.Parameter(0.1 * torch.randn(FRAMES * ROWS * COLUMNS, width))
        layer = {"nhead": 2, "dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, **layer) for _ in range(depth))

    def forward(self, latents: Tensor, level: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        x = self.embed(latents.flatten(1, 3)) + self.position + self.time(level[:, None, None])
        for block in self.blocks:
            x = block(x)
        return (self.head(x).view_as(latents),)


class ToTeacherGrid(nn.Module):
    """Projector to a coarser grid: mean pooling, and an MLP on every token."""

    def __init__(self, width: int, channels: int, factor: int):
        super().__init__()
        self.factor = factor
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, channels))

    def forward(self, features: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool3d(features.permute(0, 4, 1, 2, 3), (1, self.factor, self.factor))
        return self.mlp(pooled.permute(0, 2, 3, 4, 1))


class Teacher(nn.Module):
    """A frozen encoder of frames: latents (B, T, H, W, C) to features on half the grid."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, channels, 2, 2)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        features = self.patches(video.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return features.unflatten(0, video.shape[:2])


def clips(count: int = 16) -> list[Tensor]:
    """Return smooth random clips (T, H, W, C)."""
    coarse = torch.randn(count, CHANNELS, 2, 4, 6)
    return list(interpolate(coarse, (FRAMES, ROWS, COLUMNS), mode="trilinear").permute(0, 2, 3, 4, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weight", type=float, default=0.5, help="of the alignment")
    options = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    transformer, teacher = VideoTransformer(), Teacher().to(accelerator.device)
    # Transformer and projector are one module, so that DDP sees one forward that reaches every trained parameter.
    model = AlignedTransformer(
        transformer,
        ToTeacherGrid(width=32, channels=32, factor=2),
        block=transformer.blocks[1],
        grid_of=lambda shape, inputs: shape[1:4],
    )
    criterion = lgf.TokenRelationLoss("moalign", tau=10.0)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-3), DataLoader(clips(), batch_size=4, shuffle=True)
    )
    step = 0
    while step < options.steps:
        for latents in loader:
            with accelerator.accumulate(model):
                noise, level = torch.randn_like(latents), torch.rand(len(latents), device=latents.device)
                sigma = level.view(-1, 1, 1, 1, 1)
                prediction, projected = model((1 - sigma) * latents + sigma * noise, level=level)
                diffusion = mse_loss(prediction, noise - latents)
                alignment = criterion(projected, teacher(latents))
                accelerator.backward(diffusion + options.weight * alignment)
                optimizer.step()
                optimizer.zero_grad()
            accelerator.print(f"step {step}: diffusion {diffusion.item():.4f}, alignment {alignment.item():.4f}")
            step += 1
            if step == options.steps:
                break
    accelerator.end_training()


if __name__ == "__main__":
    main()
