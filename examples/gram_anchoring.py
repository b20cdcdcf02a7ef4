"""Gram anchoring of an image encoder, as in DINOv3: its patches keep the similarities that they had at an earlier checkpoint.

    python examples/gram_anchoring.py --model facebook/dinov2-small --images photos --output tuned

The Gram teacher is the encoder as it was, at twice the resolution, whose patch features are resampled to the student's
grid. The objective of the fine-tuning is yours; here two augmented views of an image are to have the same class token.
"""

import argparse
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate
from torchvision.transforms import v2
from transformers import AutoModel

import lgf_kernels as lgf

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def patches(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class tokens (B, C) and the patch features (B, H, W, C)."""
    rows, columns = (size // encoder.config.patch_size for size in images.shape[2:])
    tokens = encoder(images).last_hidden_state
    return tokens[:, 0], tokens[:, -rows * columns :].unflatten(1, (rows, columns))


@torch.no_grad()
def anchor(teacher: nn.Module, images: Tensor, grid: torch.Size) -> Tensor:
    """Return the teacher's patch features of images of twice the resolution, on the student's grid (B, H, W, C)."""
    larger = interpolate(images, scale_factor=2, mode="bicubic")
    features = patches(teacher, larger)[1].permute(0, 3, 1, 2)
    return interpolate(features, grid, mode="bicubic").permute(0, 2, 3, 1)


def batches(folder: Path, size: int, batch: int):
    """Yield pairs of augmented views of images, (B, 3, size, size) each, without end."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}). Give a folder of images.")
    view = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.4, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = cycle(files)
    while True:
        chosen = [Image.open(file).convert("RGB") for file in islice(images, batch)]
        yield tuple(torch.stack([view(image) for image in chosen]) for _ in range(2))


def main() -> None:
    options = parsed_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = AutoModel.from_pretrained(options.model).to(device)
    teacher = AutoModel.from_pretrained(options.model).to(device).eval().requires_grad_(False)
    criterion = lgf.TokenRelationLoss("gram")
    optimizer = torch.optim.AdamW(student.parameters(), lr=options.rate)
    size = options.patches * student.config.patch_size
    for step, views in zip(range(options.steps), batches(options.images, size, options.batch), strict=False):
        first, second = (view.to(device) for view in views)
        tokens, features = patches(student, first)
        invariance = (1 - cosine_similarity(tokens, patches(student, second)[0])).mean()
        target = anchor(teacher, first, features.shape[1:3])
        # The frames of "gram" are its images: a batch of images is one video, of which no two frames are compared.
        gram = criterion(features[None], target[None])
        (invariance + options.weight * gram).backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: invariance {invariance.item():.4f}, gram {gram.item():.5f}")
    student.save_pretrained(options.output)


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="facebook/dinov2-small", help="a DINOv2 or DINOv3: name on the hub, or folder"
    )
    parser.add_argument("--images", required=True, type=Path, help="folder of images")
    parser.add_argument("--output", required=True, type=Path, help="folder of the tuned encoder")
    parser.add_argument("--patches", type=int, default=16, help="patches along the side of a crop")
    parser.add_argument("--weight", type=float, default=2.0, help="of the Gram loss")
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
