"""AdamW for groups of parameters with schedules of their own, and a moving average of what is trained."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .runtime import recipe
from .runtime.distributed import whole


class GroupedAdamW:
    """AdamW over named groups of parameters, each with its rates by step; clips the gradient of all of them together.

    The rates are functions of the number of the step and nothing else, so that there is no scheduler whose state could be
    lost, or which could be stepped too often.

    Args:
        groups: name -> (its parameters, its settings).
        steps: of the whole run, for the schedules.
        clip: largest norm of the gradient.
    """

    def __init__(
        self, groups: Mapping[str, tuple[Iterable[nn.Parameter], recipe.Optimiser]], *, steps: int, clip: float
    ):
        self.settings = {name: settings for name, (_, settings) in groups.items()}
        self.steps, self.clip = steps, clip
        self.adamw = torch.optim.AdamW(
            [
                {"params": list(parameters), "betas": settings.betas, "weight_decay": settings.weight_decay}
                for parameters, settings in groups.values()
            ]
        )

    def rates(self, step: int) -> dict[str, float]:
        """Return group -> learning rate in a step."""
        return {name: settings.rate_at(step, self.steps) for name, settings in self.settings.items()}

    def step(self, step: int) -> Tensor:
        """Change the parameters by their gradients, drop these; returns the norm that they had."""
        for group, rate in zip(self.adamw.param_groups, self.rates(step).values(), strict=True):
            group["lr"] = rate
        parameters = [parameter for group in self.adamw.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return whole(norm)


class MovingAverage:
    """Exponential moving average of named parameters: a <- decay * a + (1 - decay) * p after every step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.parameters, self.decay = dict(parameters), decay
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, average in self.average.items():
            average.lerp_(self.parameters[name].detach(), 1 - self.decay)
