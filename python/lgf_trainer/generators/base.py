"""Base of the video models: the methods of a family, and what all families have in common."""

import importlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime import recipe
from ..runtime.errors import TrainerError, explained
from ..runtime.files import file_hash, write_tensors
from ..runtime.hub import frozen, pretrained
from ..runtime.progress import bars_only_on_terminals
from ..runtime.registry import ByName
from ..step import Batch
from ..tap import video_tokens
from .lora import LORA, add_lora, lora_shapes, read_lora, write_lora

Tensors = dict[str, Tensor]
Inputs = Batch  # what `Generator.inputs` returns, without the tensors that an objective reads
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' own name, below transformer/


class Generator(ByName, ABC, kind="generators"):
    """One video model: sizes are read from its configs by `__init__`, weights by `load_transformer` and `pipeline`.

    A family is a subclass in a file of its own. It sets the class attributes below, sets the sizes in `__init__`, and
    implements the abstract methods; the rest has an implementation that most families share.

    Args:
        path: a pipeline in Hugging Face format: a folder, or a name on the hub.
        revision: branch, tag or commit on the hub.
        index: the content of model_index.json.
        config, vae: the configurations of the transformer and of the VAE.

    Attributes:
        frames, height, width: pixels that the model was made for.
        temporal: pixel frames from one frame of tokens to the next.
        spatial: pixels along the side of a token.
        fps: pixel frames in a second; of what is trained on or sampled, where that is known.
        text: (tokens, channels) of a caption's embedding.
        captions: shapes of the tensors of a window that hold its caption, by name.
        patch: latents along the sides of a token: frames, rows, columns.
        channels: of the features that a block puts out.
        layers: how many blocks there are.
        image_to_video: the transformer takes a first frame.
        caption_alone: a caption is embedded without the image, so that there is an empty one for `data.caption_dropout`.
    """

    pipelines: ClassVar[tuple[str, ...]]  # diffusers' classes, as model_index.json names them
    transformer: ClassVar[str]  # diffusers' class
    scheduler: ClassVar[str | None] = None  # diffusers' class of what training reads of the noise schedule
    #: Pipelines that are near to the family and cannot be trained -> what they are, and the way out.
    refused: ClassVar[dict[str, str]] = {}
    own_recipe: ClassVar[str] = "sam2videox"  # the paper's, for this family
    #: Models of the family -> what differs from diffusers' defaults in the transformer's configuration.
    released: ClassVar[dict[str, dict[str, Any]]] = {}
    fps: float = 8.0
    guidance: ClassVar[float] = 6.0
    negative: ClassVar[bool] = True  # a negative prompt is looked at
    decoded: ClassVar[int] = 4  # pixel frames by which a sampled video may grow
    shift: float | None = None  # of the noise levels of flow matching; 0: by tokens; None: there is none to set

    frames: int
    height: int
    width: int
    temporal: int
    spatial: int
    text: tuple[int, int]
    patch: tuple[int, int, int]
    channels: int
    layers: int
    image_to_video: bool
    caption_alone: bool = True

    def __init__(
        self, path: str, revision: str | None, index: dict[str, Any], config: dict[str, Any], vae: dict[str, Any]
    ):
        self.path, self.revision = path, revision
        self.index, self.config, self.vae = index, config, vae

    @staticmethod
    def read(path: str, revision: str | None = None) -> "Generator":
        """Return the model of a pipeline, by the class that its model_index.json names.

        Raises:
            TrainerError: there is no such pipeline, it cannot be read, or its family is not among those that are there.
        """
        if Path(path).exists():
            if not (Path(path) / "model_index.json").is_file():
                raise TrainerError(
                    f"{path} is no pipeline: it has no model_index.json. Give the folder of save_pretrained"
                )
        elif not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
            raise TrainerError(f"{path}: no such folder. Give a pipeline's folder, or a name on the hub (owner/name)")
        way_out = "Give a pipeline's folder, or a name on the Hugging Face hub and a network"
        with (
            explained(f"{path} cannot be read", OSError, KeyError, ValueError, way_out=way_out),
            bars_only_on_terminals(),
        ):
            index = diffusers("DiffusionPipeline").load_config(path, revision=revision)
            families = [family for _, family in sorted(Generator.all().items())]
            found = next((family for family in families if index["_class_name"] in family.pipelines), None)
            for family in families:
                if reason := family.refused.get(index["_class_name"]):
                    raise TrainerError(f"{path} is {reason}")
            if found is None:
                known = "; ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in families)
                raise TrainerError(f"{path} is a {index['_class_name']}, and the families that are here are {known}")
            parts = {"transformer": found.transformer, "vae": index["vae"][1]}
            configs = [_config(diffusers(kind), path, part, revision) for part, kind in parts.items()]
            return found(path, revision, index, *configs)

    @cached_property
    def schedule(self) -> Any:
        """Return the noise schedule of the pipeline."""
        return pretrained(diffusers(self.scheduler), self.path, subfolder="scheduler", revision=self.revision)

    @property
    def captions(self) -> dict[str, tuple[int, ...]]:
        return {"text": self.text}

    # --- tokens -----------------------------------------------------------------------------------------------

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the tokens of a video over time, height and width, from its pixels; refuse one that is no whole number."""
        if frames < 1 + self.temporal or (frames - 1) % self.temporal:
            fits = 1 + self.temporal * max(1, (frames - 1) // self.temporal)
            raise TrainerError(
                f"frames is {frames}, and the model takes a multiple of {self.temporal} plus 1, such as {fits}"
            )
        for name, pixels in (("height", height), ("width", width)):
            if pixels < self.spatial or pixels % self.spatial:
                fits = self.spatial * max(1, pixels // self.spatial)
                raise TrainerError(
                    f"{name} is {pixels}, and the model takes a multiple of {self.spatial}, such as {fits}"
                )
        return 1 + (frames - 1) // self.temporal, height // self.spatial, width // self.spatial

    def frames_of_token(self, index: int) -> range:
        """Return the pixel frames that a token in frame `index` of the grid stands for: the first one, then `temporal` each."""
        return range(self.temporal * (index - 1) + 1, self.temporal * index + 1) if index else range(1)

    def grid_of_moments(self, moments: torch.Size) -> tuple[int, int, int]:
        """Return the tokens (frames, rows, columns) of a window whose moments have the shape (2C, F, h, w)."""
        return tuple(-(-size // patch) for size, patch in zip(moments[1:], self.patch, strict=True))

    @abstractmethod
    def grid_of(self, hidden: torch.Size, conditions: dict[str, Any]) -> tuple[int, int, int]:
        """Return the tokens (frames, rows, columns) of the transformer's input of a shape, batch first, and its conditions."""

    # --- extraction -------------------------------------------------------------------------------------------

    def encode(self, encoders: "Encoders", video: Tensor, caption: str, seed: str) -> Tensors:
        """Return what the cache holds of a window: video (N, 3, H, W) in [-1, 1], its caption, and a seed of its own."""
        return {"latents": encoders.moments(video)} | encoders.caption(caption)

    def caption(self, pipeline: Any, caption: str, device: torch.device) -> Tensors:
        """Return what the cache holds of a caption, by the names in `captions`."""
        return {"text": self.embed(pipeline, caption, device)}

    def embed(self, pipeline: Any, caption: str, device: torch.device) -> Tensor:
        """Return the embedding (tokens, channels) of a caption, padded or cut to the model's length."""
        options = {"do_classifier_free_guidance": False, "max_sequence_length": self.text[0], "device": device}
        return pipeline.encode_prompt(caption, **options)[0][0]

    # --- weights ----------------------------------------------------------------------------------------------

    def load_transformer(self, model: recipe.Model) -> nn.Module:
        """Return the transformer with its weights, ready to be trained."""
        transformer = pretrained(
            diffusers(self.transformer), self.path, subfolder="transformer", revision=self.revision,
            dtype=torch.float32 if model.train == "full" else getattr(torch, model.dtype),
        )  # fmt: skip
        return self.to_train(transformer, model)

    def to_train(self, transformer: nn.Module, model: recipe.Model) -> nn.Module:
        """Freeze a transformer and give it a new LoRA, or train it as a whole. What is trained is in float32."""
        full = model.train == "full"
        transformer.requires_grad_(full)
        if not full:
            add_lora(transformer, model)
        if model.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        return transformer

    def empty_transformer(self) -> nn.Module:
        """Return the transformer without its weights, for names and shapes."""
        with torch.device("meta"):
            return diffusers(self.transformer).from_config(self.config)

    def file(self, train: str) -> str:
        """Return the file of `save` that holds the transformer's weights, for a `model.train`."""
        return LORA if train == "lora" else f"transformer/{WEIGHTS}"

    def trained_shapes(self, model: recipe.Model) -> dict[str, tuple[int, ...]]:
        """Return the names, as `save` writes them, and shapes of what is trained of the transformer."""
        transformer = self.empty_transformer()
        if model.train == "lora":
            return lora_shapes(transformer, model)
        return {name: tuple(tensor.shape) for name, tensor in transformer.named_parameters()}

    @abstractmethod
    def blocks(self, transformer: nn.Module) -> nn.ModuleList:
        """Return the transformer's blocks in order of depth."""

    #: The video tokens (B, tokens, channels) in what a block puts out.
    video_tokens = staticmethod(video_tokens)

    def save(self, folder: Path, transformer: nn.Module, weights: Tensors) -> dict[str, str]:
        """Write trained weights, whole and by the transformer's names, as diffusers loads them; return file -> SHA-256."""
        if hasattr(transformer, "peft_config"):
            return {LORA: write_lora(folder / LORA, transformer, weights)}
        place = folder / "transformer"
        transformer.save_config(place)
        config = file_hash(place / "config.json")
        parameters = {name for name, _ in transformer.named_parameters()}
        buffers = {name: tensor for name, tensor in transformer.state_dict().items() if name not in parameters}
        written = write_tensors(place / WEIGHTS, weights | buffers)
        return {f"transformer/{WEIGHTS}": written, "transformer/config.json": config}

    def load(self, folder: Path, transformer: nn.Module) -> None:
        """Put what `save` wrote into a transformer that `load_transformer` made.

        Raises:
            TrainerError: it is a LoRA with other layers.
            RuntimeError, FileNotFoundError: it has other sizes, or is no such thing.
        """
        if hasattr(transformer, "peft_config"):
            read_lora(folder / LORA, transformer)
        else:
            transformer.load_state_dict(load_file(folder / "transformer" / WEIGHTS))

    # --- training ---------------------------------------------------------------------------------------------

    def check_window(self, shapes: dict[str, torch.Size], cache: Path) -> None:
        """Refuse windows that the transformer cannot be trained on, before its weights are loaded."""
        for what, have, need, way_out in self.needs(shapes):
            if have != need:
                raise TrainerError(f"the windows of {cache} have {what} {have}, and the model needs {need}: {way_out}")

    def needs(self, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Any, Any, str]]:
        """Yield (what, what the windows have of it, what the model needs, the way out)."""
        channels, _, *size = shapes["latents"]
        again = "extract again with this model"
        yield "latent channels", channels // 2, self.config["out_channels"], again
        for name, shape in self.captions.items():
            yield f"{name} of shape", tuple(shapes.get(name, ())), shape, again
        rows, columns = (side % patch for side, patch in zip(size, self.patch[1:], strict=True))
        if rows or columns:
            have, need = f"{size[0]} x {size[1]}", f"multiples of {self.patch[1]}"
            yield "latents of size", have, need, "extract at another size"

    @abstractmethod
    def latents(self, moments: Tensor, rng: torch.Generator) -> Tensor:
        """Return a sample of the VAE's posterior as the transformer is trained on it: float32, normalised, in its layout."""

    @abstractmethod
    def timestep(self, rng: torch.Generator) -> Tensor:
        """Return a noise level, a scalar: as the transformer is told it, or as `inputs` makes that of it."""

    def image(self, window: Tensors, rng: torch.Generator, latents: Tensor) -> Tensors:
        """Return what a sample holds of its first frame, for image-to-video models."""
        raise NotImplementedError(f"{self.name} has no image-to-video models")

    @abstractmethod
    def inputs(self, sample: Tensors, dtype: torch.dtype) -> Inputs:
        """Return noisy input, target and conditions of a batch of samples, in float32; `dtype` is that of the weights.

        A sample has `latents`, `noise`, `timestep`, the tensors in `captions` and what `image` returned.
        """

    # --- sampling ---------------------------------------------------------------------------------------------

    def sampled_size(self, frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Return (frames, height, width) of a video to generate; None is the model's own.

        Sizes that the model does not make are refused: diffusers would round some quietly.
        """
        own, asked = (self.frames, self.height, self.width), (frames, height, width)
        frames, height, width = (o if a is None else a for a, o in zip(asked, own, strict=True))
        step = self.spatial
        if height % step or width % step or frames % self.decoded != 1 or min(height, width, frames) < 1:
            raise TrainerError(
                f"a video of {frames} frames of {width} x {height}: width and height must be multiples of {step}, "
                f"and frames 1 more than a multiple of {self.decoded}"
            )
        return frames, height, width

    def prompts(self, pipeline: Any, prompt: str, negative: str) -> dict[str, Any]:
        """Return the pipeline's arguments that hold what is asked for; they go before those that all pipelines get."""
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline(self, dtype: torch.dtype) -> Any:
        """Return the pipeline to generate with."""
        return pretrained(diffusers(self.index["_class_name"]), self.path, dtype=dtype)


class Encoders:
    """VAE and text encoder of a model, frozen, without its transformer, by far the largest part.

    Args:
        generator: the model.
        device: where to compute.
        dtype: of the weights and of what is put out.
        tiling: encode the video in overlapping tiles: less memory, and slightly other latents.
        text_only: without the VAE.
    """

    def __init__(
        self,
        generator: Generator,
        device: torch.device,
        dtype: torch.dtype,
        tiling: bool = False,
        text_only: bool = False,
    ):
        self.generator, self.device, self.dtype = generator, device, dtype
        without = dict.fromkeys(["transformer", "scheduler", *(["vae"] if text_only else [])])
        self.pipeline = pretrained(
            diffusers("DiffusionPipeline"), generator.path, revision=generator.revision, dtype=dtype, **without
        )
        for name in ("text_encoder", "text_encoder_2", "vae", "image_encoder"):
            if getattr(self.pipeline, name, None) is not None:
                frozen(getattr(self.pipeline, name), device)
        if tiling:
            self.pipeline.vae.enable_tiling()
        self._caption: tuple[str, Tensors] | None = None

    def __call__(self, video: Tensor, caption: str, seed: str) -> Tensors:
        return self.generator.encode(self, video, caption, seed)

    @torch.no_grad()
    def moments(self, video: Tensor) -> Tensor:
        """Return moments (2C, F, h, w), mean then log variance, of a video (N, 3, H, W) in [-1, 1]; unscaled."""
        pixels = video.transpose(0, 1)[None].to(self.device, self.dtype)
        return self.pipeline.vae.encode(pixels).latent_dist.parameters[0]

    @torch.no_grad()
    def caption(self, caption: str) -> Tensors:
        """Return what the cache holds of a caption."""
        if self._caption is None or caption != self._caption[0]:  # the windows of a video come one after the other
            self._caption = caption, self.generator.caption(self.pipeline, caption, self.device)
        return self._caption[1]


def diffusers(name: str) -> type:
    """Return a class of diffusers, which takes seconds to import and which --help does without."""
    return getattr(importlib.import_module("diffusers"), name)


def _config(kind: type, path: str, part: str, revision: str | None) -> dict[str, Any]:
    """Return the configuration of a part of a pipeline, with diffusers' defaults for what the file does not say."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return defaults | kind.load_config(path, subfolder=part, revision=revision)


def posterior_sample(moments: Tensor, rng: torch.Generator) -> Tensor:
    """Return a sample (C, F, h, w), float32, of the posterior with moments (2C, F, h, w): mean, then log variance."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return DiagonalGaussianDistribution(moments.float()[None]).sample(rng)[0]
