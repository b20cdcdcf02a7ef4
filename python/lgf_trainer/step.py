"""Training step, and the loop over steps.

To be copied into other codebases: it depends on batches, an object that computes their losses, and an optimiser, not on
caches, commands or processes. The tasks of `lgf train` (tasks/) are built on it.
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


class Batch(NamedTuple):
    """One forward pass.

    Attributes:
        hidden: what the transformer sees: noisy latents, and what else is on its channels; float32.
        target: what it is to predict, float32.
        conditions: the transformer's other inputs, the noise level among them.
        targets: what the objective reads.
        counted: 1 where the prediction is compared with the target and 0 elsewhere, as it broadcasts; None: everywhere.
    """

    hidden: Tensor
    target: Tensor
    conditions: dict[str, Any]
    targets: dict[str, Tensor] = {}  # noqa: RUF012
    counted: Tensor | None = None


class Losses(NamedTuple):
    """Means over the windows of a step, and the norm of the gradient before clipping; scalars on the device."""

    diffusion: Tensor
    alignment: Tensor
    gradient: Tensor


class Watch:
    """Callbacks for the beginning and end of the alignment term, forward and backward; these do nothing."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


Objective = Callable[[Any, dict[str, Tensor]], Tensor]


class Trainable(Protocol):
    """Protocol of what a step takes: a module, and the losses of a batch."""

    model: nn.Module

    def losses(self, batch: Any, trained: bool) -> tuple[Tensor, Tensor]:
        """Return (the main loss, the weighted one); the latter only measured, without gradient, unless it is `trained`."""


@dataclass
class AlignedDiffusion:
    """Diffusion with an alignment term.

    Args:
        model: (hidden states, **conditions) -> (prediction, projected), such as `AlignedTransformer`; may be wrapped for
            several processes.
        objective: None for no alignment term; its loss is then 0.
        autocast: the forward pass of the model runs in it, the losses do not.
        watch: told when the alignment term is computed.
    """

    model: nn.Module
    objective: Objective | None
    autocast: Callable[[], AbstractContextManager] = nullcontext
    watch: Watch = field(default_factory=Watch)

    def losses(self, batch: Batch, trained: bool = True) -> tuple[Tensor, Tensor]:
        """Return (mean squared error of the prediction, alignment loss) of one forward pass."""
        with self.autocast():
            prediction, projected = self.model(batch.hidden, **batch.conditions)
        # Cast explicitly: torch 2.11 cannot differentiate through the type promotion.
        diffusion = _squared_error(prediction.float(), batch.target, batch.counted)
        if self.objective is None:
            return diffusion, torch.zeros_like(diffusion)
        self.watch.begin()
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            alignment = self.objective(projected, batch.targets)
        self.watch.end()
        if alignment.shape != () or (trained and diffusion.requires_grad and not alignment.requires_grad):
            raise ValueError(
                f"the objective must return a scalar that depends on the projected features, got shape "
                f"{tuple(alignment.shape)}, {'with' if alignment.requires_grad else 'without'} a gradient"
            )
        if alignment.requires_grad:
            _watch_backward(self.watch, alignment, projected)
        return diffusion, alignment


def training_steps(
    task: Trainable,
    batches: Iterable[Sequence[Any]],
    optimiser: GroupedAdamW,
    steps: range,
    *,
    weight: Callable[[int], float | None],
) -> Iterator[Losses]:
    """Train, one optimiser step for each item taken from this iterator.

    Minimises the mean over a step's batches of `diffusion + weight * alignment`. The host never waits for the device.

    Args:
        task: what is trained.
        batches: for every step its batches, of equal size: one, or several to accumulate.
        steps: the numbers of the steps, which schedules depend on: range(0, n), or from where an earlier run ended.
        weight: step -> weight of the alignment term; None: it is measured, not trained.

    Yields:
        The losses of the step that has just been made.
    """
    for step, micro_batches in zip(steps, batches, strict=False):  # batches may be endless
        factor = weight(step)
        sums = [0.0, 0.0]
        for index, batch in enumerate(micro_batches):
            with accumulating(task.model, more=index + 1 < len(micro_batches)):
                losses = task.losses(batch, trained=factor is not None)
                total = losses[0] if factor is None else losses[0] + factor * losses[1]
                (total / len(micro_batches)).backward()
            sums = [s + loss.detach() for s, loss in zip(sums, losses, strict=True)]
        gradient = optimiser.step(step)
        yield Losses(*(s / len(micro_batches) for s in sums), gradient)


def _squared_error(prediction: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean over a batch of the samples' means over what is counted, so that its parts can be accumulated."""
    if counted is None:
        return mse_loss(prediction, target)
    counted = counted.expand_as(target).flatten(1)
    return ((prediction - target).square().flatten(1) * counted).sum(1).div(counted.sum(1)).mean()


def _watch_backward(watch: Watch, alignment: Tensor, projected: Tensor | tuple[Tensor, ...]) -> None:
    """Watch the alignment term in the backward pass, from its value down to the projector's output."""
    alignment.register_hook(lambda _: watch.begin())
    for features in projected if isinstance(projected, tuple) else (projected,):
        features.register_hook(lambda _: watch.end())
