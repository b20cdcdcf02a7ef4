"""One training loop for both arms, and the features that a trained student is judged by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lgf_trainer import AlignedTransformer
from torch import Tensor
from torch.nn.functional import mse_loss

from lgf_kernels import lgf_kl_loss

from .model import conditions, make_scheduler


@dataclass(frozen=True)
class Split:
    """Clips to train on, or held-out ones.

    Attributes:
        latents: (N, T, 16, 2H, 2W).
        teachers: features (N, T, H, W, C), fused with equal weights: forward and backward, or just one.
    """

    latents: Tensor
    teachers: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) in tokens."""
        return tuple(self.teachers[0].shape[1:4])


@dataclass(frozen=True)
class Recipe:
    """What is common to both arms. The weight of the LGF-KL term is the only difference between them."""

    steps: int
    seed: int
    lgf_weight: float = 0.5
    lora_rate: float = 5e-3
    projector_rate: float = 1e-4  # small, so that the aligned block has to learn, not only its projector
    warmup: float = 0.1
    clip_norm: float = 1.0
    backend: str | None = None


def train(
    student: AlignedTransformer, split: Split, recipe: Recipe, lgf_weight: float, on_step: Callable[[], object]
) -> Tensor:
    """Train for `recipe.steps` steps of one clip each on `diffusion + lgf_weight * lgf`.

    Clips, noise and noise steps depend on the recipe's seed alone, so that two runs see the same of all three.

    Returns:
        (steps, 2) diffusion loss and LGF-KL loss. The latter is measured in both arms, through the projector.
    """
    rng = torch.Generator().manual_seed(recipe.seed)
    scheduler = make_scheduler()
    lora = [p for p in student.transformer.parameters() if p.requires_grad]
    projector = list(student.projector.parameters())
    rates = [recipe.lora_rate, recipe.projector_rate]
    groups = [{"params": params, "lr": rate} for params, rate in zip([lora, projector], rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=max(recipe.steps, 2), pct_start=recipe.warmup
    )
    history = []
    for _ in range(recipe.steps):
        clip = torch.randint(len(split), (1,), generator=rng)
        latents = split.latents[clip]
        noise = torch.randn(latents.shape, generator=rng)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (1,), generator=rng)
        noisy = scheduler.add_noise(latents, noise, timestep)
        prediction, projected = student(noisy, **conditions(timestep))
        diffusion = mse_loss(prediction, scheduler.get_velocity(latents, noise, timestep))
        with torch.set_grad_enabled(lgf_weight > 0):
            lgf = lgf_kl_loss(projected, [teacher[clip] for teacher in split.teachers], backend=recipe.backend)
        optimizer.zero_grad()
        (diffusion + lgf_weight * lgf if lgf_weight else diffusion).backward()
        torch.nn.utils.clip_grad_norm_(lora + projector, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        history.append((diffusion.item(), lgf.item()))
        on_step()
    return torch.tensor(history)


@torch.no_grad()
def features_at(student: AlignedTransformer, split: Split, noise_step: int) -> tuple[Tensor, Tensor]:
    """Raw features of the aligned block and the projector's output, (N, T, H, W, C) each, for clips with noise added.

    The noise is the same at every call.
    """
    scheduler = make_scheduler()
    noise = torch.randn(split.latents.shape, generator=torch.Generator().manual_seed(noise_step))
    timestep = torch.full((len(split),), noise_step)
    noisy = scheduler.add_noise(split.latents, noise, timestep)
    raw = student.predict_and_capture(noisy, **conditions(timestep))[1]
    return raw, student.projector(raw)
