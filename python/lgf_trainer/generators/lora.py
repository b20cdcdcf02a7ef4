"""Loading a LoRA so that it does what it did in training, or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from ..runtime.errors import TrainerError, in_short
from .base import LORA

ADAPTER = "lora"


def find_lora(path: Path) -> Path:
    """The file of a LoRA: `path`, or `pytorch_lora_weights.safetensors` in the folder `path`.

    Raises:
        TrainerError: no such file, not safetensors, or no metadata: diffusers would scale it by 1, not alpha / rank.
    """
    file = path / LORA if path.is_dir() else path
    if not file.is_file():
        raise TrainerError(f"{file}: no such file. Give the LoRA that lgf train wrote, or its folder")
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
        known = "transformer.lora_alpha" in json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except SafetensorError as error:
        raise TrainerError(f"{file} is no safetensors file, or a damaged one ({error})") from error
    except ValueError:
        known = False
    if not known:
        raise TrainerError(
            f"{file} does not say its alpha, and would be scaled wrongly. Save it with its metadata: "
            "save_lora_weights(..., transformer_lora_adapter_metadata=...), as lgf train does"
        )
    return file


def load_lora(pipeline: Any, file: Path, weight: float = 1.0) -> None:
    """Load a LoRA that `find_lora` found into the transformer of a pipeline.

    Args:
        pipeline: of diffusers, such as `CogVideoXPipeline` or `WanPipeline`.
        file: what `find_lora` returned.
        weight: factor on top of alpha / rank; 1 is what was trained.

    Raises:
        TrainerError: it was made for another model. diffusers would load the part that fits.
    """
    _must_fit(file, pipeline.transformer)
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=ADAPTER)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise TrainerError(
            f"{file} does not load: its metadata and its weights disagree ({in_short(error)})"
        ) from error
    pipeline.set_adapters(ADAPTER, weight)


def _must_fit(file: Path, transformer: nn.Module) -> None:
    with safe_open(file, "pt") as content:
        shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}
    layers = dict(transformer.named_modules())
    halves: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        layer, _, half = name.removeprefix("transformer.").rpartition(".lora_")
        if not name.startswith("transformer.") or half not in ("A.weight", "B.weight") or len(shape) != 2:
            raise TrainerError(
                f"{file} is no LoRA of a transformer in diffusers' format: it holds {name} of shape {shape}"
            )
        if layer not in layers:
            raise TrainerError(f"{file} was made for another model: this one has no {layer}")
        outputs, inputs = layers[layer].weight.shape[:2]
        its, own = (shape[1], inputs) if half == "A.weight" else (shape[0], outputs)
        if its != own:
            raise TrainerError(f"{file} was made for another model: {layer} has {own} channels here, {its} there")
        halves.setdefault(layer, set()).add(half)
    for layer, found in halves.items():
        if len(found) == 1:
            raise TrainerError(f"{file} is incomplete: it holds only {found.pop()} of {layer}")
    if not halves:
        raise TrainerError(f"{file} is empty")
