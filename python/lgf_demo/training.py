"""Training of an arm by the trainer's loop, and the features by which a trained student is judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from diffusers import CogVideoXDDIMScheduler
from lgf_trainer import AlignedTransformer
from lgf_trainer.generators.cogvideox import v_prediction
from lgf_trainer.optimiser import GroupedAdamW
from lgf_trainer.runtime.recipe import Optimiser
from lgf_trainer.step import AlignedDiffusion, Batch, Objective, training_steps
from torch import Tensor
from torch.nn.functional import mse_loss

from .model import empty_prompt, make_scheduler


@dataclass(frozen=True)
class Split:
    """Clips to train on, or held-out ones.

    Attributes:
        latents: (N, T, 16, 2H, 2W).
        teachers: features (N, T, H, W, C) of equal weight: forward and backward, or just one.
        points: what else objectives read of a clip, by name: `clips.tracks`, or nothing.
    """

    latents: Tensor
    teachers: tuple[Tensor, ...]
    points: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) in tokens."""
        return tuple(self.teachers[0].shape[1:4])

    def targets(self, clip: Tensor) -> dict[str, Tensor]:
        """Return what objectives read of some clips."""
        teachers = {f"teacher {i}": teacher[clip] for i, teacher in enumerate(self.teachers)}
        return teachers | {name: values[clip] for name, values in self.points.items()}


def teachers_of(targets: dict[str, Tensor]) -> list[Tensor]:
    """Return the teachers among what an objective reads."""
    return [tensor for name, tensor in targets.items() if name.startswith("teacher")]


@dataclass(frozen=True)
class Recipe:
    """What is common to all arms. The alignment term and its weight are the only differences between them."""

    steps: int
    seed: int
    lgf_weight: float = 0.5
    lora_rate: float = 5e-3
    projector_rate: float = 1e-4  # small, so that the aligned block has to learn, not only its projector
    warmup: float = 0.1
    clip_norm: float = 1.0
    backend: str | None = None


def train(
    student: AlignedTransformer,
    split: Split,
    recipe: Recipe,
    objective: Objective | None,
    weight: float,
    on_step: Callable[[], object],
) -> Tensor:
    """Train for `recipe.steps` steps of one clip each on `diffusion + weight * objective`, with the trainer's loop.

    Clips, noise and noise steps depend on the recipe's seed alone, so that two runs see the same of all three.

    Returns:
        (steps, 2) diffusion loss and the objective's, measured at weight 0 too, through the projector.
    """
    scheduler = make_scheduler()
    warmup = round(recipe.warmup * recipe.steps)
    rates = {"lora": recipe.lora_rate, "projector": recipe.projector_rate}
    groups = {
        name: (own, Optimiser(rates[name], warmup, final_rate=0.0)) for name, own in student.trained("lora").items()
    }
    history = []
    for losses in training_steps(
        AlignedDiffusion(student, objective),
        batches(split, recipe.seed, scheduler),
        GroupedAdamW(groups, steps=recipe.steps, clip=recipe.clip_norm),
        range(recipe.steps),
        weight=lambda _: weight or None,  # at weight 0 the term is measured, and the projector left alone
    ):
        history.append((losses.diffusion.item(), losses.alignment.item()))
        on_step()
    return torch.tensor(history)


def batches(split: Split, seed: int, scheduler: CogVideoXDDIMScheduler) -> Iterator[list[Batch]]:
    """Yield one clip at a time, at random, without end."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        clip = torch.randint(len(split), (1,), generator=rng)
        latents = split.latents[clip]
        noise = torch.randn(latents.shape, generator=rng)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (1,), generator=rng)
        noisy, velocity = v_prediction(scheduler, latents, noise, timestep)
        yield [Batch(noisy, velocity, {"timestep": timestep, **empty_prompt(1)}, split.targets(clip))]


class Reading(NamedTuple):
    """What a student makes of noisy clips.

    Attributes:
        raw: features of the aligned block (N, T, H, W, C).
        projected: the projector's output.
        error: mean squared error of the predicted velocity.
    """

    raw: Tensor
    projected: Tensor
    error: float


@torch.no_grad()
def read_at(student: AlignedTransformer, split: Split, noise_step: int) -> Reading:
    """Read a student on clips with noise added, the same at every call."""
    noise = torch.randn(split.latents.shape, generator=torch.Generator().manual_seed(noise_step))
    timestep = torch.full((len(split),), noise_step)
    noisy, velocity = v_prediction(make_scheduler(), split.latents, noise, timestep)
    prediction, raw = student.predict_and_capture(noisy, timestep=timestep, **empty_prompt(len(split)))
    return Reading(raw, student.projector(raw), mse_loss(prediction, velocity).item())
