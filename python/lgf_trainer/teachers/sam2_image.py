"""SAM2's image encoder as a teacher: Hiera features of single frames, one vector for each of the student's tokens.

Align4Gen takes "the image encoder" of SAM2.1 and says neither which of its features nor at what size. Our reading is the one
whose tokens are 16 pixels wide, as DINO's are, at the encoder's own size: the level of the feature pyramid that SAM2 tracks
with, without memory and without a prompt, so that no subject is needed.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..runtime.errors import TrainerError
from ..runtime.hub import frozen, pretrained
from .base import Teacher, normalised, to_grid

STRIDE = 16  # pixels of a token


@dataclass(frozen=True)
class Options:
    """Options of SAM2's image encoder."""

    model: str = "facebook/sam2.1-hiera-large"
    level: Literal["pyramid", "trunk"] = "pyramid"


class Sam2Image(Teacher):
    """SAM2's image encoder, by transformers. In the cache: `features_sam2_image`.

    `level` is "pyramid", the feature pyramid's level of stride 16 (256 channels), or "trunk", the last stage of stride 16 of
    the Hiera itself (576 channels of the large one).
    """

    name = "sam2-image"
    Options = Options

    def __init__(self, options, device):
        from transformers import Sam2VideoModel

        model = pretrained(Sam2VideoModel, options.model, ("sam2_video",), dtype=torch.float32)
        self.model, self.size = frozen(model.vision_encoder, device), model.config.image_size
        self.level, self.device = options.level, device

    def __call__(self, video, subject, student):
        return {"features_sam2_image": self.features(video[list(student.frames)], student.grid).half()}

    @torch.no_grad()
    def features(self, video: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features (N, rows, columns, C) of a video (N, 3, H, W) in [-1, 1], on a grid of rows and columns."""
        frames = normalised(video, (self.size, self.size), self.device)
        return torch.cat([to_grid(self._encoded(frame), grid) for frame in frames])

    def _encoded(self, frame: Tensor) -> Tensor:
        """Return (1, size / 16, size / 16, C) of a frame (1, 3, size, size)."""
        if self.level == "trunk":
            levels = self.model.backbone(frame).intermediate_hidden_states
        else:
            levels = [level.permute(0, 2, 3, 1) for level in self.model(frame).fpn_hidden_states]
        side = self.size // STRIDE
        for level in levels:
            if level.shape[1:3] == (side, side):
                return level
        raise TrainerError(
            f"sam2-image: the {self.level} has tokens on grids of {', '.join(str(level.shape[1]) for level in levels)} a side, "
            f"and {side} are needed. Take a SAM2 with Hiera, such as {Options.model}, or the other sam2-image.level"
        )
