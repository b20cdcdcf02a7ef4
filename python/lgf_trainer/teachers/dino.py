"""What DINO teaches: features of every frame by itself, one vector for each of the student's tokens.

SAM2VideoX compares itself with REPA to DINOv3 and says no more about it. Our reading is REPA's own way: a frame is resized
so that the patches of the encoder are the student's tokens, and the last layer's normalised patch features are taken, without
the class token and the registers.
"""

import torch
from torch import Tensor

from ..runtime.hub import frozen, pretrained
from .base import normalised

TYPES = ("dinov3_vit", "dinov2", "dinov2_with_registers")  # of models, as transformers calls them


class Dino:
    """DINOv2, with registers or without, or DINOv3, by transformers. The weights are frozen, and computed with in float32.

    Args:
        model: a name on the Hugging Face hub, such as facebook/dinov2-large, or a folder.
        device: where to compute.
    """

    def __init__(self, model: str, device: torch.device):
        from transformers import AutoModel

        self.model = frozen(pretrained(AutoModel, model, TYPES, dtype=torch.float32), device)
        self._device = device

    @torch.no_grad()
    def __call__(self, video: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (N, rows, columns, C) of a video (N, 3, H, W) in [-1, 1], on a grid of rows and columns."""
        rows, columns = grid
        patch = self.model.config.patch_size
        frames = normalised(video, (rows * patch, columns * patch), self._device)
        # The patches come last, row by row; the class token and the registers, of which there may be none, come before.
        tokens = [self.model(frame).last_hidden_state[0, -rows * columns :] for frame in frames]
        return torch.stack(tokens).unflatten(1, grid)
