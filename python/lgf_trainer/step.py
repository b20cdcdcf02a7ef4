"""The training step, and the loop that is nothing but steps.

This is what to lift into a codebase of your own: it knows batches, a model that returns (prediction, projected), an
objective and an optimiser, and nothing of caches, commands or processes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .optimiser import GroupedAdamW
from .runtime.distributed import accumulating


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        latents: (B, F, C, h, w) clean and scaled, float32.
        noise: like the latents.
        timestep: (B,) noise steps.
        conditions: the transformer's other inputs.
        image: (B, F, C, h, w) more channels for the transformer (image-to-video), float32, or None.
        targets: what the objective reads.
    """

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    conditions: dict[str, Any]
    image: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)


class NoiseSchedule(Protocol):
    """What is used of diffusers' schedulers."""

    def add_noise(self, sample: Tensor, noise: Tensor, timestep: Tensor) -> Tensor: ...
    def get_velocity(self, sample: Tensor, noise: Tensor, timestep: Tensor) -> Tensor: ...


class Losses(NamedTuple):
    """Means over the windows of a step, and the norm of the gradient before clipping; scalars on the device."""

    diffusion: Tensor
    alignment: Tensor
    gradient: Tensor


class Watch:
    """Told when the alignment term begins and ends, forward and backward. This one does not listen."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


Objective = Callable[[Any, dict[str, Tensor]], Tensor]


def forward_losses(
    model: nn.Module,
    noise_schedule: NoiseSchedule,
    batch: Batch,
    objective: Objective | None,
    *,
    trained: bool = True,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    watch: Watch = Watch(),  # noqa: B008 (it has no state)
) -> tuple[Tensor, Tensor]:
    """(diffusion loss, alignment loss) of one forward pass.

    The diffusion loss is the mean squared error of the velocity v = sqrt(a) noise - sqrt(1 - a) latents. Noisy latents
    and target are computed in float32: in bfloat16 diffusers' schedulers round the cumulative alphas, and the target
    of the first noise steps is then wrong by as much as itself.

    Args:
        model: (hidden states, timestep=..., **conditions) -> (prediction, projected).
        objective: None for no alignment term; its loss is then 0.
        trained: False only measures the alignment term, without gradient.
        autocast: the forward pass of the model runs in it, the losses do not.
        watch: told when the alignment term is computed.
    """
    latents, noise = batch.latents.float(), batch.noise.float()
    noisy = noise_schedule.add_noise(latents, noise, batch.timestep)
    hidden = noisy if batch.image is None else torch.cat([noisy, batch.image], dim=2)
    with autocast():
        prediction, projected = model(hidden, timestep=batch.timestep, **batch.conditions)
    # Not left to type promotion, whose gradient torch 2.11 refuses to take.
    diffusion = mse_loss(prediction.float(), noise_schedule.get_velocity(latents, noise, batch.timestep))
    if objective is None:
        return diffusion, torch.zeros_like(diffusion)
    watch.begin()
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        alignment = objective(projected, batch.targets)
    watch.end()
    if alignment.requires_grad:
        _watch_backward(watch, alignment, projected)
    return diffusion, alignment


def training_steps(
    model: nn.Module,
    noise_schedule: NoiseSchedule,
    batches: Iterable[Sequence[Batch]],
    objective: Objective | None,
    optimiser: GroupedAdamW,
    steps: range,
    *,
    weight: Callable[[int], float | None],
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    watch: Watch = Watch(),  # noqa: B008 (it has no state)
) -> Iterator[Losses]:
    """Train, one optimiser step for each item taken from this iterator.

    Minimises the mean over a step's batches of `diffusion + weight * alignment`. The host never waits for the device.

    Args:
        batches: for every step its batches, of equal size: one, or several to accumulate.
        steps: the numbers of the steps, which schedules depend on: range(0, n), or from where an earlier run ended.
        weight: step -> weight of the alignment term; None: it is measured, not trained.
        model, noise_schedule, objective, autocast, watch: as in `forward_losses`.

    Yields:
        The losses of the step that has just been made.
    """
    for step, micro_batches in zip(steps, batches, strict=False):  # batches may be endless
        factor = weight(step)
        sums = [0.0, 0.0]
        for index, batch in enumerate(micro_batches):
            with accumulating(model, more=index + 1 < len(micro_batches)):
                losses = forward_losses(
                    model, noise_schedule, batch, objective,
                    trained=factor is not None, autocast=autocast, watch=watch,
                )  # fmt: skip
                total = losses[0] if factor is None else losses[0] + factor * losses[1]
                (total / len(micro_batches)).backward()
            sums = [s + loss.detach() for s, loss in zip(sums, losses, strict=True)]
        gradient = optimiser.step(step)
        yield Losses(*(s / len(micro_batches) for s in sums), gradient)


def _watch_backward(watch: Watch, alignment: Tensor, projected: Tensor | tuple[Tensor, ...]) -> None:
    """Autograd runs what was recorded last first: the alignment term, from its value down to the projector's output."""
    alignment.register_hook(lambda _: watch.begin())
    for features in projected if isinstance(projected, tuple) else (projected,):
        features.register_hook(lambda _: watch.end())
