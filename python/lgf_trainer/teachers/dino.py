"""DINO as a teacher: features of single frames, one vector for each of the student's tokens.

SAM2VideoX compares itself with REPA to DINOv3 and says no more about it. Our reading is REPA's own way: a frame is resized
so that the patches of the encoder are the student's tokens, and the last layer's normalised patch features are taken, without
the class token and the registers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.hub import frozen, pretrained
from .base import Teacher, normalised

TYPES = ("dinov3_vit", "dinov2", "dinov2_with_registers")  # of models, as transformers calls them


@dataclass(frozen=True)
class Options:
    """Options of DINO."""

    model: str = "facebook/dinov3-vitl16-pretrain-lvd1689m"


class Dino(Teacher):
    """DINOv2, with registers or without, or DINOv3, by transformers. In the cache: `features_dino`."""

    name = "dino"
    Options = Options

    def __init__(self, options, device):
        from transformers import AutoModel

        self.model = frozen(pretrained(AutoModel, options.model, TYPES, dtype=torch.float32), device)
        self.device = device

    def __call__(self, video, subject, student):
        return {"features_dino": self.features(video[list(student.frames)], student.grid).half()}

    @torch.no_grad()
    def features(self, video: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features (N, rows, columns, C) of a video (N, 3, H, W) in [-1, 1], on a grid of rows and columns."""
        rows, columns = grid
        patch = self.model.config.patch_size
        frames = normalised(video, (rows * patch, columns * patch), self.device)
        # The patches come last, row by row; the class token and the registers, of which there may be none, come before.
        tokens = [self.model(frame).last_hidden_state[0, -rows * columns :] for frame in frames]
        return torch.stack(tokens).unflatten(1, grid)
