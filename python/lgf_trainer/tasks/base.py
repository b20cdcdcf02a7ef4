"""Base of the tasks: what a run trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.cache import WindowCache
from ..runtime.checkpoint import Hashes, Shapes, trained_parameters
from ..runtime.errors import TrainerError
from ..runtime.files import write_tensors
from ..runtime.recipe import Optimiser, Recipe
from ..runtime.registry import ByName
from ..runtime.settings import from_settings
from ..step import Watch

WEIGHTS = "weights.safetensors"

Apply = Callable[[WindowCache, dict[str, Tensor]], dict[str, Tensor]]


class Task(ByName, ABC, kind="tasks"):
    """A module, its parameters in groups, the samples that it sees, and the losses of a batch.

    A task is a subclass in a file of its own, with a `name` for the recipe's key `task`. `lgf train` adds the rest: steps,
    accumulation, processes, checkpoints, metrics. `__init__` reads configurations only, and raises TrainerError for what cannot
    be trained; `make_model` loads weights.

    Args:
        recipe: of the run.
        cache: its windows.
        accelerator: its device and processes.
        options: an instance of `Options`, against which the recipe's `task_options` are checked.

    Attributes:
        shapes: of the tensors of the first window; those of all others are the same.
        losses_named: names of the two losses in metrics.jsonl.
        spreads: whether `run.context` may spread a sample over several processes.
        steadier: what to try, besides lower rates, when a loss is no longer a number.
        model: what `make_model` returned, in its wrapper for several processes; set by `begin`.
    """

    losses_named: ClassVar[tuple[str, str]] = ("loss", "measured")
    spreads: ClassVar[bool] = False
    steadier: ClassVar[str] = "in float32 (--training.precision no)"
    model: nn.Module

    def __init__(self, recipe: Recipe, cache: WindowCache, accelerator: Accelerator, options: Any):
        self.recipe, self.cache, self.accelerator, self.options = recipe, cache, accelerator, options
        self.shapes = {name: tensor.shape for name, tensor in cache.read(cache.keys()[0]).tensors.items()}

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Return the module on the CPU, with the weights that the run begins with; random ones are drawn from torch's seed."""

    @abstractmethod
    def groups(self, model: nn.Module) -> dict[str, tuple[list[nn.Parameter], Optimiser]]:
        """Return group -> (its parameters, its settings); together all that requires a gradient."""

    @abstractmethod
    def samples(self) -> Dataset:
        """Return a data set whose item `n` is sample number `n` of the run: a mapping of tensors that depends on `n` alone.

        `TrainingSamples.key` gives the window of a number.
        """

    def batch(self, sample: dict[str, Tensor]) -> Any:
        """Return what `losses` takes, from collated samples on the device."""
        return sample

    @abstractmethod
    def losses(self, batch: Any, trained: bool) -> tuple[Tensor, Tensor]:
        """Return (the main loss, the weighted one), by `self.model`; the latter without gradient unless it is `trained`."""

    def weight(self, step: int) -> float | None:
        """Return the weight of the second loss in a step; None: it is measured, not trained."""
        return None

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return numbers for metrics.jsonl of the model (without wrapper), in every step after which it is saved."""
        return {}

    @classmethod
    def applied(cls, folder: Path, options: Any, device: torch.device) -> Apply | None:
        """Return what `lgf apply` runs on the windows of any cache, with the weights in the folder of a finished run.

        (cache, tensors of a window) -> the tensors to add to it. None: the task makes nothing of windows.
        """
        return None

    def begin(self, model: nn.Module, watch: Watch) -> None:
        """Take the module in its wrapper; `watch` is told when the second loss is computed."""
        self.model = model

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """Return the units of sharding, each gathered only while it runs."""
        return ()

    def save(self, folder: Path, model: nn.Module, weights: dict[str, Tensor]) -> Hashes:
        """Write trained weights (whole, by the model's names); return file -> SHA-256. Buffers are not among them."""
        return {WEIGHTS: write_tensors(folder / WEIGHTS, weights)}

    def read(self, folder: Path, model: nn.Module) -> None:
        """Put what `save` wrote into a model of `make_model`.

        Raises:
            TrainerError: it belongs to another model.
        """
        tensors, trained = load_file(folder / WEIGHTS), trained_parameters(model)
        if {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in trained.items()}:
            raise TrainerError(f"{folder / WEIGHTS} holds weights of another model")
        model.load_state_dict(tensors, strict=False)  # frozen weights are not in it

    def trained_shapes(self) -> dict[str, Shapes]:
        """Return file of `save` -> names and shapes of its tensors, without loading weights; `start_from` is checked by it."""
        with torch.device("meta"):
            model = self.make_model()
        return {WEIGHTS: {name: tuple(p.shape) for name, p in trained_parameters(model).items()}}

    def loaded_with(self, output: Path) -> str:
        """Return the call that loads what a run has left in a folder."""
        return f"safetensors.torch.load_file({str(output / WEIGHTS)!r})"


def make_task(recipe: Recipe, cache: WindowCache, accelerator: Accelerator) -> Task:
    """Return the task of a recipe.

    Raises:
        TrainerError: there is no such task, it cannot have these options, or it cannot be trained on these windows.
    """
    kind = Task.find(recipe.task)
    return kind(recipe, cache, accelerator, from_settings(kind.Options, recipe.task_options, "task_options"))
