"""What VideoMAE teaches: features of pairs of frames, which VideoREPA and MoAlign compare with.

As VideoREPA's public code has it, and MoAlign builds on: the first frame is left out, so that the 24 tokens in time of 48
frames are two for each of the latents 1 to 12; frames are a third as large, 160 x 240 for 480 x 720; the last block's output is
taken before any norm. Neither paper names the weights of VideoMAE-v2; MoAlign's 768 channels are those of ViT-B.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..runtime.errors import TrainerError
from ..runtime.hub import frozen, pretrained
from ..runtime.recipe import Count
from .base import DEVIATION, MEAN, Teacher


@dataclass(frozen=True)
class Options:
    """Of VideoMAE."""

    model: str = "MCG-NJU/videomae-base"
    """A VideoMAE of transformers: a folder, or a name on the Hugging Face hub (downloaded once). VideoMAE-v2's own files are
    other ones, and its models on the hub run code of theirs, which is not run here: convert them."""
    reduction: Count = 3
    """Rows and columns of the student's tokens for one of VideoMAE's (VideoREPA: 30 x 45 and 10 x 15)."""


class VideoMae(Teacher):
    """VideoMAE by transformers. In the cache: `features_videomae`, (tubelets, rows, columns, channels) in float16."""

    name = "videomae"
    Options = Options

    def __init__(self, options, device):
        from transformers import VideoMAEModel

        weights = pretrained(VideoMAEModel, options.model, ("videomae",), dtype=torch.float32)
        self.model = frozen(weights, device)
        self.device, self.reduction = device, options.reduction
        self._last_block = None
        self.model.encoder.layer[-1].register_forward_hook(self._keep)

    def __call__(self, video, subject, student):
        rows, columns = (side // self.reduction for side in student.grid)
        if not rows or not columns:
            raise TrainerError(
                f"videomae.reduction is {self.reduction}, which leaves nothing of {student.grid[0]} x {student.grid[1]} tokens"
            )
        return {"features_videomae": self.features(video[1:], (rows, columns)).half()}

    @torch.no_grad()
    def features(self, video: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features (tubelets, rows, columns, C) of frames (N, 3, H, W) in [-1, 1].

        Raises:
            TrainerError: the frames are no whole number of tubelets.
        """
        config, (rows, columns) = self.model.config, grid
        if len(video) % config.tubelet_size:
            raise TrainerError(f"VideoMAE takes frames by {config.tubelet_size}, got {len(video)}")
        tubelets = len(video) // config.tubelet_size
        size = (rows * config.patch_size, columns * config.patch_size)
        # VideoREPA resizes without antialiasing, and its features are the teacher's.
        frames = interpolate(video, size, mode="bicubic", antialias=False)
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
        frames = ((frames / 2 + 0.5 - mean) / deviation)[None].to(self.device)
        self._resize_positions(tubelets, rows, columns)
        self.model(frames)
        return self._last_block[0].cpu().unflatten(0, (tubelets, rows, columns))

    def _keep(self, _block, _arguments, output) -> None:
        self._last_block = output if isinstance(output, Tensor) else output[0]

    def _resize_positions(self, tubelets: int, rows: int, columns: int) -> None:
        """Interpolate the table of positions: bicubic over the picture, then linear over time, as VideoREPA does.

        A model built for the size would have another table: it is a sinusoid over the flat number of a token.
        """
        config, embeddings = self.model.config, self.model.embeddings
        if not hasattr(self, "_positions"):
            self._positions = embeddings.position_embeddings
        side = config.image_size // config.patch_size
        table = self._positions.reshape(-1, side, side, config.hidden_size).permute(0, 3, 1, 2)
        table = interpolate(table, (rows, columns), mode="bicubic", align_corners=False).transpose(0, 1)[None]
        table = interpolate(table, (tubelets, rows, columns), mode="trilinear", align_corners=False)[0]
        embeddings.position_embeddings = table.permute(1, 2, 3, 0).reshape(1, -1, config.hidden_size)
        embeddings.patch_embeddings.image_size = (rows * config.patch_size, columns * config.patch_size)
