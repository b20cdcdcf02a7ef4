"""Training of both arms by the trainer's loop, and the features by which a trained student is judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import CogVideoXDDIMScheduler
from lgf_trainer import AlignedTransformer
from lgf_trainer.generators.cogvideox import v_prediction
from lgf_trainer.optimiser import GroupedAdamW
from lgf_trainer.runtime.recipe import Optimiser
from lgf_trainer.step import AlignedDiffusion, Batch, training_steps
from torch import Tensor

from lgf_kernels import lgf_kl_loss

from .model import empty_prompt, make_scheduler


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
    """Train for `recipe.steps` steps of one clip each on `diffusion + lgf_weight * lgf`, with the trainer's loop.

    Clips, noise and noise steps depend on the recipe's seed alone, so that two runs see the same of all three.

    Returns:
        (steps, 2) diffusion loss and LGF-KL loss. The latter is measured in both arms, through the projector.
    """
    scheduler = make_scheduler()
    warmup = round(recipe.warmup * recipe.steps)
    rates = {"lora": recipe.lora_rate, "projector": recipe.projector_rate}
    task = AlignedDiffusion(
        student, lambda projected, teachers: lgf_kl_loss(projected, list(teachers.values()), backend=recipe.backend)
    )
    groups = {
        name: (own, Optimiser(rates[name], warmup, final_rate=0.0)) for name, own in student.trained("lora").items()
    }
    history = []
    for losses in training_steps(
        task,
        _batches(split, recipe, scheduler),
        GroupedAdamW(groups, steps=recipe.steps, clip=recipe.clip_norm),
        range(recipe.steps),
        weight=lambda _: lgf_weight or None,  # at weight 0 the term is measured, and the projector left alone
    ):
        history.append((losses.diffusion.item(), losses.alignment.item()))
        on_step()
    return torch.tensor(history)


def _batches(split: Split, recipe: Recipe, scheduler: CogVideoXDDIMScheduler) -> Iterator[list[Batch]]:
    """Yield one clip at a time, at random, without end."""
    rng = torch.Generator().manual_seed(recipe.seed)
    while True:
        clip = torch.randint(len(split), (1,), generator=rng)
        latents = split.latents[clip]
        noise = torch.randn(latents.shape, generator=rng)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (1,), generator=rng)
        teachers = {f"teacher {i}": teacher[clip] for i, teacher in enumerate(split.teachers)}
        noisy, velocity = v_prediction(scheduler, latents, noise, timestep)
        yield [Batch(noisy, velocity, {"timestep": timestep, **empty_prompt(1)}, teachers)]


@torch.no_grad()
def features_at(student: AlignedTransformer, split: Split, noise_step: int) -> tuple[Tensor, Tensor]:
    """Return features of the aligned block and the projector's output, (N, T, H, W, C) each, for clips with noise added.

    The noise is the same at every call.
    """
    scheduler = make_scheduler()
    noise = torch.randn(split.latents.shape, generator=torch.Generator().manual_seed(noise_step))
    timestep = torch.full((len(split),), noise_step)
    noisy = scheduler.add_noise(split.latents, noise, timestep)
    raw = student.predict_and_capture(noisy, timestep=timestep, **empty_prompt(len(split)))[1]
    return raw, student.projector(raw)
