"""A cache of random windows as `lgf extract` would write it for the tiny pipeline, and a recipe to train on it."""

from pathlib import Path

import torch
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.testing import FRAMES, HEIGHT, LATENT_CHANNELS, TEXT_TOKENS, TEXT_WIDTH, WIDTH

from lgf_kernels import local_gram_flow

LATENT_FRAMES, ROWS, COLUMNS = (FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16
WINDOW = 3
SETTINGS = {
    "format": 1, "image_to_video": True, "frames": FRAMES, "height": HEIGHT, "width": WIDTH, "time": "frames",
    "grid": [FRAMES, ROWS, COLUMNS], "window": WINDOW, "similarity": "cosine", "boundary": "exclude",
}  # fmt: skip


def random_window(seed: int, frames: int = FRAMES) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    def moments(frames: int) -> torch.Tensor:
        return torch.cat([normal(LATENT_CHANNELS, frames, HEIGHT // 8, WIDTH // 8),
                          normal(LATENT_CHANNELS, frames, HEIGHT // 8, WIDTH // 8) - 5])  # fmt: skip

    places = torch.randn(ROWS, COLUMNS, 8, generator=torch.Generator().manual_seed(0))  # to be learnt: nothing moves
    forward, backward = places + 0.3 * normal(2, frames, ROWS, COLUMNS, 8)
    logits = [local_gram_flow(teacher[None], window=WINDOW)[0].half() for teacher in (forward, backward)]
    return {
        "latents": moments(LATENT_FRAMES),
        "image": moments(1),
        "text": normal(TEXT_TOKENS, TEXT_WIDTH),
        "teacher_forward": logits[0],
        "teacher_backward": logits[1],
        "features_sam2_forward": forward.half(),
        "features_sam2_backward": backward.half(),
        "features_dino": normal(FRAMES, ROWS, COLUMNS, 12),
        "features_videomae": normal(4, 2, 3, 10),
        "features_motion": normal(4, 2, 3, 64),
        "flow": normal(3, 2, 16, 24),
        "tracks": torch.rand(7, FRAMES, 2, generator=rng) * torch.tensor([HEIGHT - 1, WIDTH - 1]),
        "tracks_visible": torch.ones(7, FRAMES, dtype=torch.uint8),
        "masks": (normal(FRAMES, ROWS, COLUMNS) > 0).float(),
    }


def wan_window(seed: int, frames: int = FRAMES) -> dict[str, torch.Tensor]:
    """A window for a text-to-video Wan2.1: other text, and no image."""
    window = random_window(seed, frames)
    del window["image"]
    return window | {"text": torch.randn(512, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))}


def make_cache(folder: Path, windows: int = 6, frames: int = FRAMES, window=random_window) -> WindowCache:
    cache = WindowCache(folder, SETTINGS)
    for number in range(windows):
        cache.write(f"window-{number}", window(number, frames), {"video": f"{number}.mp4", "start": 0})
    return cache


def extraction(videos: Path, output: Path, model: Path, *options: object) -> list[str]:
    """Words of `lgf extract`, for videos that need no caption."""
    words = ["extract", videos, "--output", output, "--model", model, "--allow-empty-captions", *options]
    return [str(word) for word in words]


def tiny(folder: Path, **changes: object) -> list[str]:
    """Overrides that make any recipe tiny: the model in `folder`/model, the cache in `folder`/cache."""
    options = {
        "model.path": folder / "model", "model.dtype": "float32", "model.rank": 4, "model.alpha": 2,
        "data.cache": folder / "cache", "alignment.block": 1, "projector.hidden": 16, "projector.widths": "16 8 8",
        "projector.groups": 4, "projector.reduction": 2, "optimisers.lora.rate": 1e-2, "optimisers.lora.warmup": 2,
        "optimisers.projector.rate": 2e-3, "optimisers.projector.warmup": 2, "training.steps": 3, "training.batch": 2,
        "training.precision": "no", "run.output": folder / "run", "run.workers": 0, "run.save_every": 1,
        "run.tracker": "none",
    }  # fmt: skip
    options |= {name.replace("__", "."): value for name, value in changes.items()}
    words = {name: [value] if isinstance(value, Path) else str(value).split() for name, value in options.items()}
    return [str(word) for name, values in words.items() for word in (f"--{name}", *values)]
