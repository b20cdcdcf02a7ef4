"""Diffusion with an alignment term: a video model (its LoRA or all its weights) and a projector."""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from ..data.samples import TrainingSamples
from ..generators.base import Encoders, Generator
from ..objectives.base import make_objective, unread_options
from ..runtime.checkpoint import Hashes
from ..runtime.context import Context, unsupported_reason
from ..runtime.distributed import must_fit
from ..runtime.errors import TrainerError, explained
from ..runtime.files import write_atomically, write_tensors
from ..runtime.recipe import Alignment, Recipe
from ..step import AlignedDiffusion
from ..tap import AlignedTransformer
from .base import Task

PROJECTOR = "projector.safetensors"


class Diffusion(Task):
    """The diffusion loss of a video model, and the weighted loss of an objective on the features of one block."""

    name = "diffusion"
    losses_named = ("diffusion", "alignment")
    spreads = True
    steadier = (
        "a warm-up of the alignment (--alignment.schedule 0 0 500 1), or in float32 (--model.dtype float32 "
        "--training.precision no)"
    )

    def __init__(self, recipe, cache, accelerator, options):
        super().__init__(recipe, cache, accelerator, options)
        self.objective = make_objective(recipe.alignment, cache.settings)
        if (unread := unread_options(recipe.alignment)) and accelerator.is_main_process:
            print(f"{', '.join(unread)}: not read, as alignment.loss is {recipe.alignment.loss}", flush=True)
        self.generator = make_generator(recipe)
        self.generator.fps = cache.settings.get("fps", self.generator.fps)  # some models are told it
        self.generator.check_window(self.shapes, cache.folder)
        if recipe.data.caption_dropout and not self.generator.caption_alone:
            raise TrainerError(
                f"data.caption_dropout is {recipe.data.caption_dropout:g}, and {self.generator.path} embeds a caption together "
                "with its image, so there is none without. Set it to 0"
            )
        if recipe.alignment.block >= self.generator.layers:
            last = self.generator.layers - 1
            raise TrainerError(f"alignment.block is {recipe.alignment.block}, and the model has blocks 0 to {last}")
        if self.objective is not None:
            grid = self.generator.grid_of_moments(self.shapes["latents"])
            self.objective.check(self.shapes, grid, cache.folder)
            self.objective.check_head(recipe.projector, self.shapes, grid, cache.folder)
        if recipe.run.context > 1:
            tokens = math.prod(self.generator.grid_of_moments(self.shapes["latents"]))
            if reason := unsupported_reason(self.generator.empty_transformer(), recipe.run.context, tokens):
                raise TrainerError(f"run.context {recipe.run.context} cannot be: {reason}")
        if recipe.model.train == "full":
            weights = sum(parameter.numel() for parameter in self.generator.empty_transformer().parameters())
            must_fit(weights, accelerator.device, shards=accelerator.num_processes if recipe.run.shard else 1)
        else:
            self.generator.trained_shapes(recipe.model)  # refuses targets that are no layers, before weights are loaded

    def make_projector(self) -> nn.Module | None:
        """Return the head that the objective needs."""
        if self.objective is None:
            return None
        return self.objective.make_projector(self.recipe.projector, self.generator.channels, self.shapes)

    def make_model(self):
        transformer, projector = self.generator.load_transformer(self.recipe.model), self.make_projector()
        block = self.generator.blocks(transformer)[self.recipe.alignment.block]
        context = None
        if self.recipe.run.context > 1:
            context = Context(self.recipe.run.context, self.accelerator.device.type)
            context.spread(transformer)
        return AlignedTransformer(
            transformer, projector, block, self.generator.grid_of, self.generator.video_tokens, context
        )

    def blocks(self, model):
        return self.generator.blocks(model.transformer)

    def groups(self, model):
        groups = model.trained(self.recipe.model.train)
        return {name: (parameters, getattr(self.recipe.optimisers, name)) for name, parameters in groups.items()}

    def begin(self, model, watch):
        super().begin(model, watch)
        self.step = AlignedDiffusion(model, self.objective, self.accelerator.autocast, watch)

    # --- data and losses --------------------------------------------------------------------------------------

    def samples(self):
        data = self.recipe.data
        return TrainingSamples(
            self.cache, self.generator, () if self.objective is None else self.objective.tensors,
            seed=self.recipe.training.seed,
            image_dropout=data.image_dropout, caption_dropout=data.caption_dropout, no_caption=self.empty_caption(),
        )  # fmt: skip

    def empty_caption(self) -> dict[str, Tensor] | None:
        """Return the tensors of the empty caption, if they are needed; kept with the run: its encoder outweighs the model."""
        if not self.recipe.data.caption_dropout:
            return None
        path = self.recipe.run.output / "empty-caption.safetensors"
        with self.accelerator.main_process_first():
            if not path.exists():
                dtype = getattr(torch, self.recipe.model.dtype)
                tensors = Encoders(self.generator, torch.device("cpu"), dtype, text_only=True).caption("")
                write_atomically(path, save({name: tensor.float().contiguous() for name, tensor in tensors.items()}))
        return load(path.read_bytes())

    def batch(self, sample):
        model = self.recipe.model
        inputs = self.generator.inputs(sample, getattr(torch, model.dtype if model.train == "lora" else "float32"))
        read = () if self.objective is None else self.objective.tensors
        return inputs._replace(targets={name: sample[name] for name in read})

    def losses(self, batch, trained):
        return self.step.losses(batch, trained)

    def weight(self, step):
        return alignment_weight(self.recipe.alignment, step)

    # --- weights ----------------------------------------------------------------------------------------------

    def save(self, folder, model, weights):
        return save_weights(folder, self.generator, model, weights)

    def read(self, folder, model):
        load_weights(folder, self.generator, model)

    def trained_shapes(self):
        model = self.recipe.model
        shapes = {self.generator.file(model.train): self.generator.trained_shapes(model)}
        with torch.device("meta"):
            projector = self.make_projector()
        if projector is not None:
            shapes[PROJECTOR] = {name: tuple(parameter.shape) for name, parameter in projector.named_parameters()}
        return shapes

    def loaded_with(self, output):
        if self.recipe.model.train == "full":
            return f"{self.generator.transformer}.from_pretrained({str(output / 'transformer')!r})"
        return f"pipeline.load_lora_weights({str(output)!r})"


def make_generator(recipe: Recipe) -> Generator:
    """Return the model of a recipe; nothing but configurations is read."""
    dtype, precision = recipe.model.dtype, recipe.training.precision
    if precision == "no" and dtype != "float32" and recipe.model.train == "lora":
        raise TrainerError(f"model.dtype {dtype} needs training.precision bf16; without it, set float32")
    generator = Generator.read(recipe.model.path, recipe.model.revision)
    if recipe.model.shift is not None:
        if generator.shift is None:
            raise TrainerError(
                f"model.shift is for flow matching, and {generator.name} predicts velocities. Leave it out"
            )
        generator.shift = recipe.model.shift
    return generator


def alignment_weight(alignment: Alignment, step: int) -> float:
    """Return the weight of the alignment term in a step."""
    if alignment.loss == "none":
        return 0.0
    if not alignment.schedule:
        return alignment.weight
    steps, factors = zip(*alignment.schedule, strict=True)
    return alignment.weight * float(np.interp(step, steps, factors))


def save_weights(folder: Path, generator: Generator, model: AlignedTransformer, weights: dict[str, Tensor]) -> Hashes:
    """Write trained weights (whole, by the model's names): the transformer's as diffusers loads them, and the projector."""
    parts: dict[str, dict[str, Tensor]] = {"transformer": {}, "projector": {}}
    for name, tensor in weights.items():
        part, _, inner = name.partition(".")
        parts[part][inner] = tensor
    hashes = generator.save(folder, model.transformer, parts["transformer"])
    if parts["projector"]:
        hashes[PROJECTOR] = write_tensors(folder / PROJECTOR, parts["projector"])
    return hashes


def load_weights(folder: Path, generator: Generator, model: AlignedTransformer) -> None:
    """Put what `save_weights` wrote into a model that is not yet parallelised; refuse weights of another model."""
    # Of other sizes, or of a run that trained something else.
    with explained(f"{folder} holds weights of another model", FileNotFoundError, RuntimeError):
        generator.load(folder, model.transformer)
        if model.projector is not None and (projector := folder / PROJECTOR).exists():
            model.projector.load_state_dict(load_file(projector))
