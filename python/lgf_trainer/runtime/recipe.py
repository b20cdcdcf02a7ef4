"""Recipe of a training run: a tree of documented settings, read from YAML and changed on the command line.

Where SAM2VideoX states a value, it is the default here; "our reading" marks a choice that the paper leaves open. Limits
stand beside the fields; pydantic checks them, and the types.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, BeforeValidator, Field

from .errors import TrainerError, explained
from .settings import flatten, from_settings, merge, parse_yaml, read_yaml, to_settings

NAME = re.compile(r"[\w.]+")  # of a module
SHIPPED = resources.files("lgf_trainer").joinpath("recipes")

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _odd(value: int) -> int:
    if value < 1 or value > 15 or value % 2 == 0:
        raise ValueError(f"must be odd and at most 15, got {value}")
    return value


Side = Annotated[int, AfterValidator(_odd)]  # of the window of Local Gram Flow


def _word(value: Any) -> Any:
    """Undo YAML's reading of no as false and of null as nothing."""
    return "no" if value is False else "none" if value is None else value


Word = BeforeValidator(_word)
#: One text, or a list of them; a tuple, because pydantic takes no list for one that does not come from JSON itself.
Words = BeforeValidator(
    lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
)

#: On the command line, `{margin: 0.2}`.
Mapping = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{KEY: VALUE}",
        instance_from_str=lambda words: parse_yaml(words[0], words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True)
class Model:
    """The video model and what is trained of it."""

    path: str = "THUDM/CogVideoX-5b-I2V"
    """A CogVideoX, Wan2.1, HunyuanVideo or LTX-Video pipeline in Hugging Face format: a folder, or a name on the hub (which
    is then downloaded)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the frozen weights. What is trained is always kept in float32: bfloat16 swallows small steps."""
    train: Literal["lora", "full"] = "lora"
    """lora: a LoRA on frozen weights; full: all weights, which takes 16 bytes of memory for each of them."""
    shift: Positive | None = None
    """Of the noise levels of models with flow matching, towards noise: s u / (1 + (s - 1) u). None: the family's own, 3 for
    Wan2.1, 7 for HunyuanVideo, and for LTX-Video what its scheduler says for the number of tokens (our reading)."""
    rank: Count = 256
    """Rank of the LoRA."""
    alpha: Positive = 128
    """The LoRA's output is scaled by alpha / rank."""
    dropout: Decay = 0.0
    """Dropout in front of the LoRA."""
    targets: Annotated[tuple[str, ...], Words] = ("to_k", "to_q", "to_v", "to_out.0")
    """The linear layers that get a LoRA: ends of their names (default: all of attention), or one regular expression that matches
    whole names, as `transformer_blocks\\.\\d+\\.attn1\\.(to_q|to_k)`."""
    gradient_checkpointing: bool = True
    """Keep only the input of each block and run it again in the backward pass: slower, far less memory."""


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    cache: Path = Path("cache")
    """A folder written by `lgf extract`."""
    transforms: tuple[Literal["shuffle", "speed", "inpaint"], ...] = ()
    """Windows to train on beside the videos as they are: with shuffled blocks, twice the speed, or black frames (SAMA's
    transforms), with the teacher's view of the changed video. The cache must have them: lgf extract --transforms."""
    image_dropout: Share = 0.05
    """Share of samples whose image is replaced by zeros (image-to-video models)."""
    caption_dropout: Share = 0.0
    """Share of samples whose caption is replaced by the empty one. Above 0 the text encoder is loaded once."""


@dataclass(frozen=True)
class Lgf:
    """Local Gram Flow. Window, similarity and boundary are those that the cache was made with.

    The last two may be asked for; a cache that was made with others is refused.
    """

    fusion: Literal["logits", "separate", "features"] = "logits"
    """How the forward and the backward teacher meet: as a weighted sum of their logits (the paper); each with a
    projector of its own; or as a weighted sum of their features (the paper's ablations)."""
    direction: Literal["forward", "backward", "both"] = "forward"
    """Queries in frame t and keys in frame t+1, the other way round, or the mean of both (an ablation)."""
    divergence: Literal["kl", "l2"] = "kl"
    """l2 is the paper's ablation "w/o KL"."""
    temperature: float = 0.1
    """Of the softmax over the window."""
    similarity: Literal["cosine", "dot"] | None = None
    """That the cache must have been made with; None: whatever it was."""
    boundary: Literal["exclude", "zero"] | None = None
    """That the cache must have been made with; None: whatever it was."""


@dataclass(frozen=True)
class Relation:
    """Token relation distances."""

    form: Literal["videorepa", "videorepa-spatial", "videorepa-temporal", "moalign", "gram", "gram-clamped", "sara"] = (
        "videorepa"
    )
    """Which frame pairs count how much, and how differences are measured (`lgf_kernels.TokenRelationLoss`)."""
    tau: float = 10.0
    """Frames over which MoAlign's pair weights decay."""
    margin: float | None = None
    """Differences up to here are free; None: the form's own (0.1 for VideoREPA, 0 for MoAlign)."""


@dataclass(frozen=True)
class Alignment:
    """The term added to the diffusion loss."""

    loss: Annotated[str, Word] = "lgf"
    """lgf: Local Gram Flow; none: LoRA only; features: mean squared error to the teacher's features; repa: cosine
    distance to given features, token by token (combined by concat: Align4Gen); crepa: that to the neighbouring frames'
    features, too; relation: token relation distances to given features; mask: cross
    entropy of the subject's mask, predicted by a linear layer on the projector; or one of yours (docs/trainer.md)."""
    weight: Amount = 0.5
    """lambda: the weight of the term."""
    schedule: tuple[tuple[Index, Amount], ...] = ()
    """Points (step, factor): the weight is multiplied by the factor, linear between the points and constant outside
    them. `0 0 500 1` warms it up over 500 steps. Empty: constant."""
    block: Index = 24
    """0-based index of the aligned block. The paper's "25th block" (our reading: counted from 1)."""
    k: Share = 0.5
    """Weight of the forward teacher; the backward one has 1 - k (our reading). At 1 the backward one is not read."""
    features: Annotated[tuple[str, ...], Field(min_length=1)] = ("sam2_forward", "sam2_backward")
    """Which features of the cache the losses on features use: one name, two weighted by k and 1 - k, or more."""
    weights: tuple[Amount, ...] = ()
    """Of those features, instead of k: one number each."""
    combine: Literal["sum", "concat"] = "sum"
    """Several features: the weighted sum of their losses, or one target, their channels side by side, each of length 1."""
    options: Mapping = field(default_factory=dict)
    """Of a loss that has no group here, as `options: {margin: 0.2}`; its file says which there are."""
    backend: str | None = None
    """Of lgf_kernels; None: the first that can (see lgf doctor)."""
    lgf: Lgf = field(default_factory=Lgf)
    relation: Relation = field(default_factory=Relation)


@dataclass(frozen=True)
class Projector:
    """The head between the aligned block and the teacher's space."""

    form: Literal["sam2videox", "moalign", "videorepa", "repa"] = "sam2videox"
    """sam2videox: time brought to the teacher's frames, then pointwise layers, on all tokens. moalign, videorepa: layers
    on the latents behind the first, then twice as many frames and fewer tokens, as of `lgf extract --teachers videomae`.
    repa: an MLP of every token of the latents alone, for `lgf extract --time latent`."""
    reduction: Count = 3
    """Rows and columns of tokens for one that the forms moalign and videorepa put out."""
    hidden: Count = 768
    """Channels of the temporal part (sam2videox)."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (512, 256, 256)
    """Output channels of the layers: for moalign 256 64, for videorepa and repa 2048 2048 768. Losses that compare channel by
    channel replace the last by the teacher's number of channels."""
    groups: Count = 32
    """Groups of every GroupNorm (sam2videox)."""
    interpolation: Literal["frames", "factor"] = "frames"
    """Over time (sam2videox): frames, to as many as the teacher has. factor: by 4 as the paper says, without the first 3."""
    last: Literal["bare", "normalised"] = "bare"
    """Of the last layer (sam2videox): bare, as cosines compare it. normalised: with GroupNorm and SiLU as the paper says."""
    stem: Literal["ours", "none"] = "ours"
    """Where the channels become `hidden` (sam2videox), which the paper leaves open: ours, a layer of its own. none: the
    convolution over time does it."""


@dataclass(frozen=True)
class Optimiser:
    """AdamW for one group of parameters."""

    rate: Amount
    """Learning rate after the warm-up."""
    warmup: Index
    """Steps of linear warm-up."""
    final_rate: Amount | None = None
    """Reached in the last step, along a cosine that begins after the warm-up. None: the rate stays."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the moments."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay (our reading: torch's default)."""

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step 0, 1, ..., `steps` - 1; the final one in any after them."""
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
    full: Optimiser = field(default_factory=lambda: Optimiser(rate=2e-6, warmup=200))


@dataclass(frozen=True)
class Training:
    """How long and how exactly."""

    steps: Count = 3000
    """Optimiser steps."""
    batch: Count = 32
    """Windows in one step, over all processes and accumulation."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient of all trained parameters together; inf does not clip."""
    ema: Decay | None = None
    """Decay of a moving average of the trained weights, saved beside them; None: none. 0.999 is usual."""
    precision: Annotated[Literal["bf16", "no"], Word] = "bf16"
    """Of the forward and backward pass; losses, targets, trained weights and their steps are in float32."""
    seed: Index = 42
    """Of initial weights, order of the windows, noise, noise steps and dropout."""


@dataclass(frozen=True)
class Run:
    """Where and how it runs. Nothing here changes what is learned, but for rounding."""

    output: Path = Path("run")
    """Folder of the LoRA, the projector, checkpoints and logs. Started again, a run goes on from its last checkpoint."""
    per_process: Count = 1
    """Windows in one forward pass. The rest of the batch is other processes and accumulation."""
    shard: bool = False
    """Shard the weights over the processes (FSDP2) instead of copying them (DDP)."""
    context: Count = 1
    """Processes over which each window's tokens are spread (context parallelism), for videos whose activations do not fit one
    GPU. Their number, attention heads and tokens must be multiples of it. Wan2.1."""
    save_every: Count = 20
    """Steps between checkpoints, which is what a run that is killed outright makes again; one that is asked to end (SIGTERM,
    Ctrl-C) saves first. Of CogVideoX-5B's LoRA a checkpoint is 3 GB, of all its weights 67 GB."""
    keep: Count = 2
    """Checkpoints to keep."""
    log_every: Count = 10
    """Steps between looks at the losses; each look makes the host wait for the GPU, the steps between do not."""
    tracker: Annotated[Literal["tensorboard", "wandb", "none"], Word] = "tensorboard"
    """Where curves go besides metrics.jsonl. wandb must be installed by you."""
    workers: Index = 2
    """Processes that read ahead."""


@dataclass(frozen=True)
class Recipe:
    """A training run."""

    start_from: str | None = None
    """Folder of another run, whose weights this one begins with: a stage after a stage. Its optimiser starts anew."""
    task: str = "diffusion"
    """What is trained: diffusion with an alignment term, or a task of yours (docs/trainer.md)."""
    task_options: Mapping = field(default_factory=dict)
    """Of a task of yours, as `task_options: {width: 64}`; its file says which there are."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    alignment: Alignment = field(default_factory=Alignment)
    projector: Projector = field(default_factory=Projector)
    optimisers: Optimisers = field(default_factory=Optimisers)
    training: Training = field(default_factory=Training)
    run: Run = field(default_factory=Run)


def check(recipe: Recipe) -> None:
    """Refuse values that no run could have, that do not go together, or that would train nothing."""
    build(to_settings(recipe))
    alignment, head = recipe.alignment, recipe.projector
    if is_pattern(recipe.model.targets):
        with explained("model.targets is no regular expression", re.error):
            re.compile(recipe.model.targets[0])
    elif wrong := [name for name in recipe.model.targets if not NAME.fullmatch(name)]:
        raise TrainerError(
            f"model.targets must be ends of names or one regular expression alone, got {wrong[0]!r} among others"
        )
    names, weights = len(alignment.features), len(alignment.weights)
    if weights and weights != names:
        raise TrainerError(f"alignment.weights must have a number for each of {names} features, got {weights}")
    if names > 2 and not weights and alignment.combine == "sum":
        raise TrainerError(
            f"alignment.k weighs one or two names, got {names} alignment.features. Set alignment.weights to {names} "
            "numbers, or alignment.combine to concat"
        )
    normed = (head.hidden, *(head.widths if head.last == "normalised" else head.widths[:-1]))
    for width in normed if head.form == "sam2videox" else ():
        if width % head.groups:
            raise TrainerError(f"projector.groups is {head.groups}, which does not divide a width of {width}")
    steps = [step for step, _ in alignment.schedule]
    if steps != sorted(steps):
        raise TrainerError("alignment.schedule must have its points in the order of their steps")


def is_pattern(targets: tuple[str, ...]) -> bool:
    """Return whether `model.targets` is a regular expression: one text that cannot be the end of a name."""
    return len(targets) == 1 and not NAME.fullmatch(targets[0])


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(Path(entry.name).stem for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """Return the recipe of a YAML file, or one that comes with the package.

    `base: NAME` in a file takes everything that the file does not say from another recipe: a file beside it, or one
    that comes with the package.

    Raises:
        TrainerError: no such recipe, not YAML, an unknown key or a value of the wrong type or size.
    """
    return build(_settings(name), name)


def build(settings: Any, source: str = "") -> Recipe:
    """Return a recipe from nested mappings; what they do not say keeps its default."""
    return from_settings(Recipe, settings, source, base=Recipe())


def _settings(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the YAML of a recipe, merged over that of its base; `above` are the files that it is the base of."""
    path = Path(name)
    if not path.is_file():
        path = SHIPPED.joinpath(f"{name}.yaml")
        if not path.is_file():
            raise TrainerError(f"there is no recipe {name}: give a YAML file, or one of {', '.join(shipped_recipes())}")
    settings = read_yaml(path)
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str) or path in above:
        raise TrainerError(f"{path}: base must be the name of another recipe, got {base!r}")
    beside = path.parent / base
    return merge(_settings(str(beside) if beside.is_file() else base, (*above, path)), settings)


def differences(one: Recipe, other: Recipe, *, but: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, value, other value) where two recipes differ, without the keys that begin with one of `but`."""
    values = flatten(other)
    for key, value in flatten(one).items():
        if value != values[key] and not key.startswith(but):
            yield key, value, values[key]
