"""What a training run is: a tree of documented settings, read from YAML and changed on the command line.

Where SAM2VideoX states a value, it is the default here; "our reading" marks a choice that the paper leaves open.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import TrainerError

SHIPPED = resources.files("lgf_trainer").joinpath("recipes")


@dataclass(frozen=True)
class Model:
    """The video model and its LoRA."""

    path: str = "THUDM/CogVideoX-5b-I2V"
    """A CogVideoX pipeline in Hugging Face format: a folder, or a name on the hub (which is then downloaded)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the frozen weights. What is trained is always kept in float32: bfloat16 swallows small steps."""
    rank: int = 256
    """Rank of the LoRA."""
    alpha: float = 128
    """The LoRA's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout in front of the LoRA."""
    targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """The linear layers that get a LoRA: all of attention."""
    gradient_checkpointing: bool = True
    """Keep only the input of each block and run it again in the backward pass: slower, far less memory."""


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    cache: Path = Path("cache")
    """A folder written by `lgf extract`."""
    image_dropout: float = 0.05
    """Share of samples whose image is replaced by zeros (image-to-video models)."""
    caption_dropout: float = 0.0
    """Share of samples whose caption is replaced by the empty one. Above 0 the text encoder is loaded once."""


@dataclass(frozen=True)
class Lgf:
    """Local Gram Flow. Window, similarity and boundary are those that the cache was made with."""

    fusion: Literal["logits", "separate", "features"] = "logits"
    """How the forward and the backward teacher meet: as a weighted sum of their logits (the paper); each with a
    projector of its own; or as a weighted sum of their features (the paper's ablations)."""
    direction: Literal["forward", "backward", "both"] = "forward"
    """Queries in frame t and keys in frame t+1, the other way round, or the mean of both (an ablation)."""
    divergence: Literal["kl", "l2"] = "kl"
    """l2 is the paper's ablation "w/o KL"."""
    temperature: float = 0.1
    """Of the softmax over the window."""


@dataclass(frozen=True)
class Relation:
    """Token relation distances."""

    form: Literal["videorepa", "videorepa-spatial", "videorepa-temporal", "moalign"] = "videorepa"
    """Which frame pairs count how much."""
    tau: float = 10.0
    """Frames over which MoAlign's pair weights decay."""
    margin: float | None = None
    """Differences up to here are free; None: the form's own (0.1 for VideoREPA, 0 for MoAlign)."""


@dataclass(frozen=True)
class Alignment:
    """The term added to the diffusion loss."""

    loss: Literal["lgf", "none", "features", "repa", "relation", "mask"] = "lgf"
    """lgf: Local Gram Flow; none: LoRA only; features: mean squared error to the teacher's features; repa: cosine
    distance to given features, token by token; relation: token relation distances to given features; mask: cross
    entropy of the subject's mask, predicted by a linear layer on the projector."""
    weight: float = 0.5
    """lambda: the weight of the term."""
    schedule: tuple[tuple[int, float], ...] = ()
    """Points (step, factor): the weight is multiplied by the factor, linear between the points and constant outside
    them. `0 0 500 1` warms it up over 500 steps. Empty: constant."""
    block: int = 24
    """0-based index of the aligned block. The paper's "25th block" (our reading: counted from 1)."""
    k: float = 0.5
    """Weight of the forward teacher; the backward one has 1 - k (our reading). At 1 the backward one is not read."""
    features: tuple[str, ...] = ("sam2_forward", "sam2_backward")
    """Which features of the cache the losses on features use: one name, or two weighted by k and 1 - k."""
    backend: str | None = None
    """Of lgf_kernels; None: the first that can (see lgf doctor)."""
    lgf: Lgf = field(default_factory=Lgf)
    relation: Relation = field(default_factory=Relation)


@dataclass(frozen=True)
class Projector:
    """The head between the aligned block and the teacher's space."""

    hidden: int = 768
    """Channels of the temporal part."""
    widths: tuple[int, ...] = (512, 256, 256)
    """Output channels of the pointwise layers. Losses that compare channel by channel replace the last by the
    teacher's number of channels."""
    groups: int = 32
    """Groups of every GroupNorm."""


@dataclass(frozen=True)
class Optimiser:
    """AdamW for one group of parameters."""

    rate: float
    """Learning rate after the warm-up."""
    warmup: int
    """Steps of linear warm-up."""
    final_rate: float | None = None
    """Reached in the last step, along a cosine that begins after the warm-up. None: the rate stays."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay (our reading: torch's default)."""

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, ..., `steps` - 1; the final one in any after them."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.final_rate is None:
            return self.rate
        progress = (step + 1 - self.warmup) / max(steps - self.warmup, 1)
        return self.final_rate + (self.rate - self.final_rate) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass(frozen=True)
class Optimisers:
    """One group of parameters each."""

    lora: Optimiser = field(default_factory=lambda: Optimiser(rate=1e-4, warmup=200))
    projector: Optimiser = field(default_factory=lambda: Optimiser(rate=5e-4, warmup=150, final_rate=1e-5))


@dataclass(frozen=True)
class Training:
    """How long and how exactly."""

    steps: int = 3000
    """Optimiser steps."""
    batch: int = 32
    """Windows in one step, over all processes and accumulation."""
    clip: float = 1.0
    """Largest norm of the gradient of all trained parameters together; inf does not clip."""
    ema: float | None = None
    """Decay of a moving average of the trained weights, saved beside them; None: none. 0.999 is usual."""
    precision: Literal["bf16", "no"] = "bf16"
    """Of the forward and backward pass; losses, targets, trained weights and their steps are in float32."""
    seed: int = 42
    """Of initial weights, order of the windows, noise, noise steps and dropout."""


@dataclass(frozen=True)
class Run:
    """Where and how it runs. Nothing here changes what is learned, but for rounding."""

    output: Path = Path("run")
    """Folder of the LoRA, the projector, checkpoints and logs. Started again, a run goes on from its last checkpoint."""
    per_process: int = 1
    """Windows in one forward pass. The rest of the batch is other processes and accumulation."""
    shard: bool = False
    """Shard the weights over the processes (FSDP2) instead of copying them (DDP)."""
    save_every: int = 1
    """Steps between checkpoints: what a killed run can lose."""
    keep: int = 2
    """Checkpoints to keep."""
    log_every: int = 10
    """Steps between looks at the losses; each look makes the host wait for the GPU, the steps between do not."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where curves go besides metrics.jsonl. wandb must be installed by you."""
    workers: int = 2
    """Processes that read ahead."""


@dataclass(frozen=True)
class Recipe:
    """A training run."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    alignment: Alignment = field(default_factory=Alignment)
    projector: Projector = field(default_factory=Projector)
    optimisers: Optimisers = field(default_factory=Optimisers)
    training: Training = field(default_factory=Training)
    run: Run = field(default_factory=Run)


_GROUPS = tuple(f"optimisers.{entry.name}." for entry in dataclasses.fields(Optimisers))

#: What a number must be -> whether it is, and the keys that this holds for.
_LIMITS: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (lambda value: value >= 1, (
        "model.rank", "projector.hidden", "projector.widths", "projector.groups", "training.steps", "training.batch",
        "run.per_process", "run.save_every", "run.keep", "run.log_every",
    )),
    "at least 0": (lambda value: 0 <= value < math.inf, (
        "alignment.weight", "alignment.schedule", "alignment.block", "training.seed", "run.workers",
        *(group + key for group in _GROUPS for key in ("rate", "warmup", "final_rate", "weight_decay")),
    )),
    "above 0": (lambda value: value > 0, ("model.alpha", "training.clip")),
    "in [0, 1]": (lambda value: 0 <= value <= 1, ("data.image_dropout", "data.caption_dropout", "alignment.k")),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, (
        "model.dropout", "training.ema", *(group + "betas" for group in _GROUPS),
    )),
}  # fmt: skip


def check(recipe: Recipe) -> None:
    """Refuse values that no run could have, or that would train nothing.

    Raises:
        TrainerError: it names the first such key.
    """
    values = flatten(recipe)
    for words, (holds, keys) in _LIMITS.items():
        for key in keys:
            for number in _numbers(values[key]):
                if not holds(number):
                    raise TrainerError(f"{key} must be {words}, got {number}")
    if len(recipe.alignment.features) not in (1, 2):
        raise TrainerError(f"alignment.features must be one or two names, got {len(recipe.alignment.features)}")
    head = recipe.projector
    for width in (head.hidden, *head.widths[:-1]):
        if width % head.groups:
            raise TrainerError(f"projector.groups is {head.groups}, which does not divide a width of {width}")
    if not head.widths:
        raise TrainerError("projector.widths must have one width at least")
    if recipe.training.precision == "no" and recipe.model.dtype != "float32":
        raise TrainerError(f"model.dtype {recipe.model.dtype} needs training.precision bf16; without it, set float32")
    steps = [step for step, _ in recipe.alignment.schedule]
    if steps != sorted(steps):
        raise TrainerError("alignment.schedule must have its points in the order of their steps")


def _numbers(value: Any) -> list[float]:
    """The numbers of a value: itself, those of a list of lists, none of None."""
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    return [] if value is None else [value]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(entry.name).stem for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """The recipe of a YAML file, or one that comes with the package.

    `base: NAME` in a file takes everything that the file does not say from another recipe: a file beside it, or one
    that comes with the package.

    Raises:
        TrainerError: no such recipe, not YAML, an unknown key or a value of the wrong type.
    """
    return build(Recipe, _settings(name), name)


def flatten(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of a recipe or of a part of one."""
    flat = {}
    for entry in dataclasses.fields(recipe):
        value = getattr(recipe, entry.name)
        flat |= flatten(value, f"{prefix}{entry.name}.") if _is_group(value) else {prefix + entry.name: value}
    return flat


def to_settings(recipe: Any) -> Any:
    """A recipe as what YAML and JSON can hold; `build` makes it a recipe again."""
    if _is_group(recipe):
        return {entry.name: to_settings(getattr(recipe, entry.name)) for entry in dataclasses.fields(recipe)}
    if isinstance(recipe, tuple):
        return [to_settings(value) for value in recipe]
    return str(recipe) if isinstance(recipe, Path) else recipe


def _settings(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML of a recipe, merged over that of its base; `above` are the files that it is the base of."""
    path = Path(name)
    if not path.is_file():
        path = SHIPPED.joinpath(f"{name}.yaml")
        if not path.is_file():
            raise TrainerError(f"there is no recipe {name}: give a YAML file, or one of {', '.join(shipped_recipes())}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainerError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise TrainerError(f"{path} must hold keys and values, such as `training: {{steps: 3000}}`")
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str) or path in above:
        raise TrainerError(f"{path}: base must be the name of another recipe, got {base!r}")
    beside = path.parent / base
    return _merge(_settings(str(beside) if beside.is_file() else base, (*above, path)), settings)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def build(kind: type, settings: Any, source: str, prefix: str = "") -> Any:
    """An instance of the dataclass `kind` from nested mappings; what they do not say keeps its default."""
    if not isinstance(settings, dict):
        raise TrainerError(f"{source}: {prefix.rstrip('.')} must hold keys and values, got {settings!r}")
    hints, default = get_type_hints(kind), _default(prefix)
    for key in settings:
        if key not in hints:
            known = [*flatten(Recipe()), *(prefix + name for name in hints)]
            near = difflib.get_close_matches(f"{prefix}{key}", known, n=1, cutoff=0)[0]
            raise TrainerError(f"{source}: there is no key {prefix}{key}. The nearest one is {near}")
    return dataclasses.replace(
        default, **{key: _convert(value, hints[key], source, f"{prefix}{key}") for key, value in settings.items()}
    )


def _default(prefix: str) -> Any:
    """The part of the default recipe that a prefix such as "optimisers.lora." names."""
    part = Recipe()
    for name in prefix.split(".")[:-1]:
        part = getattr(part, name)
    return part


def _convert(value: Any, kind: Any, source: str, key: str) -> Any:
    """A YAML value as the type that the key is documented with."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, source, f"{key}.")
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(value, arguments[0], source, key)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_convert(v, k, source, key) for v, k in zip(value, kinds, strict=True))
    elif origin is Literal:
        value = "no" if value is False else "none" if value is None else value  # as YAML reads them without quotes
        if value in arguments:
            return value
        raise TrainerError(f"{source}: {key} must be one of {', '.join(arguments)}, got {value}")
    elif kind is bool and isinstance(value, bool):
        return value
    elif kind in (str, Path) and isinstance(value, str):
        return kind(value)
    elif kind in (int, float) and not isinstance(value, bool | list | dict | None):
        try:  # YAML reads 1e-4 as text
            if kind is float or float(value) == int(float(value)):
                return kind(float(value))
        except (ValueError, OverflowError):
            pass
    raise TrainerError(f"{source}: {key} must be {_words(kind)}, got {value!r}")


def _words(kind: Any) -> str:
    names = {bool: "true or false", str: "text", Path: "a path", int: "a whole number", float: "a number"}
    if get_origin(kind) is tuple:
        return "a list" if get_args(kind)[-1] is Ellipsis else f"a list of {len(get_args(kind))}"
    return names[kind]


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def differences(one: Recipe, other: Recipe, *, but: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, other value) where two recipes differ, without the keys that begin with one of `but`."""
    values = flatten(other)
    for key, value in flatten(one).items():
        if value != values[key] and not key.startswith(but):
            yield key, value, values[key]
