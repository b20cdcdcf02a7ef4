"""Dataset of what `lgf extract` wrote: latents, text and cached teacher logits of windows of videos."""

import json
from collections.abc import Iterator
from pathlib import Path

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Windows(Dataset):
    """Windows of videos, one file each.

    Attributes:
        settings: those of the extraction; "grid" is (frames, rows, columns) of the teacher, "window" that of its logits.
    """

    def __init__(self, cache: Path):
        self.settings = json.loads((cache / "settings.json").read_text())
        self.files = sorted((cache / "windows").glob("*.safetensors"))
        if not self.files:
            raise SystemExit(f"{cache} holds no windows. Make them with: lgf extract VIDEOS --output {cache}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return `latents` (C, F, h, w), a sample of the posterior, `text`, `forward` and `backward`."""
        tensors = load_file(self.files[index])
        return {
            "latents": DiagonalGaussianDistribution(tensors["latents"][None].float()).sample()[0],
            "text": tensors["text"].float(),
            "forward": tensors["teacher_forward"],
            "backward": tensors["teacher_backward"],
        }


def forever(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """Yield batches without end, in a new order in every epoch."""
    while True:
        yield from loader
