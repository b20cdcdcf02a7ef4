"""Checkpoints of a run, and the weights that it leaves.

    FOLDER/step-00000100/pytorch_lora_weights.safetensors    weights, as the task saves them: the LoRA for diffusers'
                                                             load_lora_weights, or transformer/ where all are trained
                         projector.safetensors               the projector
                         optimizer.safetensors               moments of AdamW, and the moving average if there is one
                         checkpoint.json                     step, recipe, what was trained on, hashes of the files

A checkpoint is written into a hidden folder that is renamed when all of it is on the disk. Files are hashed while they are
written, and verified when a run goes on. Random states need not be kept: the seed and the number of the step decide them.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lgf_kernels.core.files import whole_file

from ..optimiser import GroupedAdamW, MovingAverage
from .distributed import like, whole
from .errors import TrainerError, explained, in_short
from .files import file_hash, write_tensors

OPTIMISER, FACTS = "optimizer.safetensors", "checkpoint.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
#: Without the frozen weights, beside which a LoRA is small: they would be gathered and copied at every save.
TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Hashes = dict[str, str]  # path below the folder -> SHA-256


# --- weights --------------------------------------------------------------------------------------------------


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what a run changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- the state of a run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run changes.

    Attributes:
        save: (folder, model, trained weights) -> hashes of the files, that of the task.
        model: the module inside any wrapper of `parallelise`.
    """

    save: Callable[[Path, nn.Module, Tensors], Hashes]
    model: nn.Module
    optimiser: GroupedAdamW
    average: MovingAverage | None = None

    def write(self, main: bool) -> Callable[[Path], Hashes]:
        """Gather everything, which all processes must do; returns what writes it, for the `main` one to call."""
        trained = trained_parameters(self.model)
        weights = get_model_state_dict(self.model, options=TRAINED)
        moments = get_optimizer_state_dict(self.model, self.optimiser.adamw, options=WHOLE)
        kept = {} if self.average is None else self.average.average
        average = {name: whole(tensor) for name, tensor in kept.items()}

        def write(folder: Path) -> Hashes:
            state = {f"{key}/{name}": value for name, own in moments["state"].items() for key, value in own.items()}
            state |= {f"average/{name}": tensor for name, tensor in average.items()}
            hashes = self.save(folder, self.model, {name: weights[name] for name in trained})
            hashes[OPTIMISER] = write_tensors(folder / OPTIMISER, state)
            if average:
                found = self.save(folder / "ema", self.model, average)
                hashes |= {f"ema/{name}": sha for name, sha in found.items()}
            return hashes

        return write

    def read(self, folder: Path) -> None:
        """Put optimiser and average back. The task reads the weights, before the model is parallelised."""
        tensors, trained = load_file(folder / OPTIMISER), trained_parameters(self.model)
        state = get_optimizer_state_dict(self.model, self.optimiser.adamw)
        state["state"] = {name: {key: tensors[f"{key}/{name}"] for key in MOMENTS} for name in trained}
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimiser.adamw, state, options=options)
        if self.average is not None:
            for name, parameter in trained.items():
                self.average.average[name] = like(tensors[f"average/{name}"], parameter)


# --- checkpoints ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where it is, after how many steps, and what is said about it."""

    folder: Path
    step: int
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run. Only one process may use this.

    Args:
        folder: where they are.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def place(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, write: Callable[[Path], Hashes], facts: dict[str, Any]) -> Path:
        """Save a checkpoint with what `write` writes into the folder it is given. Older ones than `keep` are removed.

        Raises:
            TrainerError: it cannot be written. Those before it are untouched.
        """
        place = self.place(step)
        partial = place.with_name(f".partial-{place.name}")
        try:
            partial.mkdir(parents=True)
            hashes = write(partial)
            with whole_file(partial / FACTS) as file:
                file.write(json.dumps({"step": step, "sha256": hashes, **facts}, indent=1).encode())
            if place.exists():
                self._remove(place)
            partial.rename(place)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainerError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {in_short(error)}. "
                "Mend that and run again: it goes on from the checkpoint before"
            ) from error
        for old in checkpoint_folders(self.folder)[: -self.keep]:
            self._remove(old)
        return place

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint. What a killed run has left half-written, and what is damaged, is removed.

        Raises:
            TrainerError: a checkpoint cannot be read, which does not make it a damaged one.
        """
        for leftover in self.folder.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for place in reversed(checkpoint_folders(self.folder)):
            if found := read_checkpoint(place):
                return found
            print(f"{place} is damaged; going back to the checkpoint before it")
            self._remove(place)
        return None

    def _remove(self, place: Path) -> None:
        """Out of sight in one move, then away: a checkpoint is whole or not there."""
        hidden = place.rename(place.with_name(f".partial-old-{place.name}"))
        shutil.rmtree(hidden, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, oldest first."""
    return sorted(folder.glob("step-" + 8 * "[0-9]"))


def read_checkpoint(place: Path) -> Checkpoint | None:
    """Return the checkpoint in a folder, verified; None if it is damaged, an error if it cannot be read."""
    way_out = "Mend that, or move it away to go on from the one before"
    with (
        explained(f"{place} cannot be read", OSError, way_out=way_out),
        suppress(FileNotFoundError, ValueError, KeyError, TypeError),
    ):
        facts = json.loads((place / FACTS).read_text())
        if all(file_hash(place / name) == sha for name, sha in facts["sha256"].items()):
            return Checkpoint(place, facts["step"], facts)
    return None


def starting_weights(run: Path, files: dict[str, Shapes]) -> Path:
    """Return the folder with the weights of a run that another begins with: its result, or else its newest checkpoint.

    Args:
        run: its folder.
        files: file -> names and shapes of the tensors that it must have. Only the first file must be there: a run without a
            projector has none to give.

    Raises:
        TrainerError: there is none, or something in it has another name or shape.
    """
    first = next(iter(files))
    places = [run, *reversed(checkpoint_folders(run / "checkpoints"))]
    folder = next((place for place in places if (place / first).is_file()), None)
    if folder is None:
        raise TrainerError(
            f"start_from {run}: it has no {first}, nor a checkpoint with one. Name a run of this task and model.train"
        )
    for path, shapes in ((folder / file, shapes) for file, shapes in files.items() if (folder / file).exists()):
        there = tensor_shapes(path)
        for name, shape in shapes.items():
            if there.get(name) != shape:
                has = f"has the shape {there[name]}" if name in there else "is not"
                raise TrainerError(
                    f"start_from {run}: {name} {has} in {path.name}, and this recipe's has {shape}. Set the recipe (groups "
                    "model and projector, or task_options) as that run had it, or start from another"
                )
    return folder


def tensor_shapes(path: Path) -> Shapes:
    """Return the names and shapes of the tensors in a file."""
    with safe_open(path, "pt") as content:
        return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}


def publish(checkpoint: Path, output: Path) -> None:
    """Copy the weights of a checkpoint to where the user looks for them, each file whole or not at all."""
    for source in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if source.name in (OPTIMISER, FACTS):
            continue
        with open(source, "rb") as content, whole_file(output / source.relative_to(checkpoint)) as file:
            shutil.copyfileobj(content, file, 1 << 20)


def _sync(folder: Path) -> None:
    """Wait until a folder's names are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
