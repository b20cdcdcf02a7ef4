"""LoRA files: written with their metadata, loaded with the strength that was trained, or refused.

peft is imported where it is used: it takes seconds.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime import recipe
from ..runtime.errors import TrainerError, explained
from ..runtime.files import write_tensors

LORA = "pytorch_lora_weights.safetensors"  # diffusers' own name
ADAPTER = "lora"


def add_lora(transformer: nn.Module, model: recipe.Model) -> None:
    """Add a new LoRA in float32 to a frozen transformer.

    Raises:
        TrainerError: no layer is one of `model.targets`.
    """
    from peft import LoraConfig

    targets = model.targets[0] if recipe.is_pattern(model.targets) else list(model.targets)
    lora = LoraConfig(r=model.rank, lora_alpha=model.alpha, lora_dropout=model.dropout, target_modules=targets)
    with explained("model.targets fit no layer of this model", ValueError):
        transformer.add_adapter(lora)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_shapes(transformer: nn.Module, model: recipe.Model) -> dict[str, tuple[int, ...]]:
    """Return the names, as `write_lora` writes them, and shapes of a new LoRA of a transformer, which is changed."""
    transformer.requires_grad_(False)
    add_lora(transformer, model)
    return {name: tuple(tensor.shape) for name, tensor in _named(transformer).items()}


def write_lora(path: Path, transformer: nn.Module, weights: dict[str, Tensor]) -> str:
    """Write a LoRA, whole and by the transformer's names, as diffusers loads it; return its SHA-256.

    It carries its metadata: without them alpha would be lost, and it would be loaded with the wrong strength.
    """
    settings = transformer.peft_config["default"].to_dict()
    metadata = {f"transformer.{k}": sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    return write_tensors(path, _named(transformer, weights), {"lora_adapter_metadata": json.dumps(metadata)})


def read_lora(path: Path, transformer: nn.Module) -> None:
    """Put what `write_lora` wrote into a transformer with such a LoRA; refuse other layers."""
    from peft import set_peft_model_state_dict

    lora = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    found = set_peft_model_state_dict(transformer, lora)
    if found.unexpected_keys:
        raise TrainerError(f"{path.parent} holds a LoRA for another model: it has {found.unexpected_keys[0]}")


def _named(transformer: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(transformer, state_dict=weights)
    return {f"transformer.{name}": tensor for name, tensor in layers.items()}


def find_lora(path: Path) -> Path:
    """Return the file of a LoRA: `path`, or `pytorch_lora_weights.safetensors` in the folder `path`.

    Raises:
        TrainerError: no such file, not safetensors, or no metadata: diffusers would scale it by 1, not alpha / rank.
    """
    file = path / LORA if path.is_dir() else path
    if not file.is_file():
        raise TrainerError(f"{file}: no such file. Give the LoRA that lgf train wrote, or its folder")
    with (
        explained(f"{file} is no safetensors file, or a damaged one", SafetensorError),
        safe_open(file, "pt") as content,
    ):
        metadata = content.metadata() or {}
    known = False
    with suppress(ValueError):
        known = "transformer.lora_alpha" in json.loads(metadata.get("lora_adapter_metadata", "{}"))
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
    must_fit(file, pipeline.transformer)
    kinds = RuntimeError, ValueError, TypeError, KeyError
    with explained(f"{file} does not load: its metadata and its weights disagree", *kinds):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=ADAPTER)
    pipeline.set_adapters(ADAPTER, weight)


def must_fit(file: Path, transformer: nn.Module) -> None:
    """Raise TrainerError unless a LoRA has its layers, and their sizes, from such a transformer, which may be on "meta"."""
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
            raise TrainerError(
                f"{file} was made for another model: this one has no {layer}. Give one that was trained for it"
            )
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
