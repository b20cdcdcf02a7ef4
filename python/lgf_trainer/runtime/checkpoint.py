"""What a run leaves on disk: the LoRA as diffusers loads it, the projector beside it, and checkpoints to go on from.

    FOLDER/step-00000100/pytorch_lora_weights.safetensors    for `pipeline.load_lora_weights(FOLDER/step-00000100)`
                         projector.safetensors
                         optimizer.safetensors               moments of AdamW, and the moving average if there is one
                         checkpoint.json                     step, recipe, what was trained on, hashes of the files

A checkpoint is written into a hidden folder that is renamed when all of it is on the disk. Random states need not be
kept: the seed and the number of the step decide them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXPipeline
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..optimiser import GroupedAdamW, MovingAverage
from ..tap import AlignedTransformer
from .distributed import like, whole
from .errors import TrainerError, in_short, is_disk_full

PROJECTOR, OPTIMISER, FACTS = "projector.safetensors", "optimizer.safetensors", "checkpoint.json"
Tensors = dict[str, Tensor]


# --- weights --------------------------------------------------------------------------------------------------


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a run changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_weights(folder: Path, model: AlignedTransformer, weights: Tensors) -> None:
    """Write trained weights (whole, by the model's names): the LoRA with its metadata, and the projector.

    Without the metadata, alpha would be lost, and a LoRA with alpha != rank would be loaded with the wrong strength.
    """
    transformer = {
        name.removeprefix("transformer."): w for name, w in weights.items() if name.startswith("transformer.")
    }
    CogVideoXPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(model.transformer, state_dict=transformer),
        transformer_lora_adapter_metadata=model.transformer.peft_config["default"].to_dict(),
    )
    projector = {name.removeprefix("projector."): w for name, w in weights.items() if name.startswith("projector.")}
    if projector:
        save_file(projector, folder / PROJECTOR)


def load_weights(folder: Path, model: AlignedTransformer) -> None:
    """Put what `save_weights` wrote into a model that is not yet parallelised."""
    lora = load_file(folder / "pytorch_lora_weights.safetensors")
    found = set_peft_model_state_dict(
        model.transformer, {name.removeprefix("transformer."): weight for name, weight in lora.items()}
    )
    if found.unexpected_keys:
        raise TrainerError(f"{folder} holds a LoRA for another model: it has {found.unexpected_keys[0]}")
    if model.projector is not None:
        model.projector.load_state_dict(load_file(folder / PROJECTOR))


# --- the state of a run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingState:
    """All that a run changes. `model` is the module inside any wrapper of `parallelise`."""

    model: AlignedTransformer
    optimiser: GroupedAdamW
    average: MovingAverage | None = None

    def write(self, main: bool) -> Callable[[Path], None]:
        """Gather everything, which all processes must do; returns what writes it, for the `main` one to call."""
        parameters = trained_parameters(self.model)
        weights = _gather(parameters, main)
        moments = _gather(self._moments(), main)
        average = _gather(self.average.average, main) if self.average else {}

        def write(folder: Path) -> None:
            save_weights(folder, self.model, weights)
            save_file(moments | {f"average/{name}": tensor for name, tensor in average.items()}, folder / OPTIMISER)
            if average:
                save_weights(folder / "ema", self.model, average)

        return write

    def read(self, folder: Path) -> None:
        """Put optimiser and average back. The weights are loaded before the model is parallelised (`load_weights`)."""
        tensors = load_file(folder / OPTIMISER)
        for name, parameter in trained_parameters(self.model).items():
            state = {key: tensors.pop(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.adamw.state[parameter] = {
                key: value if key == "step" else like(value, parameter) for key, value in state.items()
            }
            if self.average:
                self.average.average[name] = like(tensors.pop(f"average/{name}"), parameter)

    def _moments(self) -> Tensors:
        state = self.optimiser.adamw.state
        parameters = trained_parameters(self.model)
        return {f"{key}/{name}": value for name, p in parameters.items() for key, value in state[p].items()}


@torch.no_grad()
def _gather(tensors: Tensors, keep: bool) -> Tensors:
    gathered = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if keep:
            gathered[name] = complete.cpu().contiguous()
    return gathered


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
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> Path:
        """A checkpoint with what `write` writes into the folder it is given. Older ones than `keep` go.

        Raises:
            TrainerError: it cannot be written. Those before it are untouched.
        """
        place = self.place(step)
        partial = place.with_name(f".partial-{place.name}")
        try:
            partial.mkdir(parents=True)
            write(partial)
            hashes = {path.relative_to(partial).as_posix(): _sync_and_hash(path) for path in _files(partial)}
            (partial / FACTS).write_text(json.dumps({"step": step, "sha256": hashes, **facts}, indent=1))
            _sync_and_hash(partial / FACTS)
            if place.exists():
                self._remove(place)
            partial.rename(place)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = "the disk is full" if is_disk_full(error) else in_short(error)
            raise TrainerError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {reason}. "
                "Mend that and run again: it goes on from the checkpoint before"
            ) from error
        for old in self._places()[: -self.keep]:
            self._remove(old)
        return place

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole. What a killed run has left half-written, and what is damaged, goes.

        Raises:
            TrainerError: a checkpoint cannot be read, which does not make it a damaged one.
        """
        for leftover in self.folder.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for place in reversed(self._places()):
            try:
                facts = json.loads((place / FACTS).read_text())
                if all(_sync_and_hash(place / name) == sha for name, sha in facts["sha256"].items()):
                    return Checkpoint(place, facts["step"], facts)
            except (FileNotFoundError, ValueError, KeyError):
                pass
            except OSError as error:
                raise TrainerError(
                    f"{place} cannot be read ({error.strerror}). Mend that, or move it away to go on from the one before"
                ) from error
            print(f"{place} is damaged; going back to the checkpoint before it")
            self._remove(place)
        return None

    def _places(self) -> list[Path]:
        return sorted(self.folder.glob("step-" + 8 * "[0-9]"))

    def _remove(self, place: Path) -> None:
        """Out of sight in one move, then away: a checkpoint is whole or not there."""
        hidden = place.rename(place.with_name(f".partial-old-{place.name}"))
        shutil.rmtree(hidden, ignore_errors=True)


def publish(checkpoint: Path, output: Path) -> None:
    """Copy the weights of a checkpoint to where the user looks for them, each file whole or not at all."""
    for source in _files(checkpoint):
        if source.name in (OPTIMISER, FACTS):
            continue
        target = output / source.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_and_hash(path: Path) -> str:
    """Wait until a file is on the disk; the hash of what is there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Wait until a folder's names are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
