"""Fine-tune a video model with a projector and an alignment loss, on what `lgf extract` has cached.

    lgf train sam2videox --data.cache cache --run.output runs/dog      the paper's recipe
    lgf train my-recipe.yaml --training.steps 500                      your own, and a change to it
    accelerate launch -m lgf_cli train sam2videox ...          on several GPUs and nodes

A run that is started again goes on from its last checkpoint.
"""

import hashlib
import importlib.util
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import tyro
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from lgf_kernels import BackendUnavailableError

from .data.cache import WindowCache
from .data.samples import BatchNumbers, TrainingSamples, load_samples, mix
from .generators.base import Encoders, Generator
from .objectives.base import make_objective
from .optimiser import GroupedAdamW, MovingAverage
from .runtime.checkpoint import (
    Checkpoint,
    Checkpoints,
    TrainingState,
    load_weights,
    publish,
    starting_weights,
    trained_parameters,
)  # fmt: skip
from .runtime.distributed import must_fit, parallelise
from .runtime.errors import TrainerError, is_disk_full
from .runtime.files import claim, remove_leftovers, write_atomically
from .runtime.metrics import Metrics
from .runtime.recipe import Alignment, Recipe, build, check, differences, read_recipe, shipped_recipes
from .runtime.settings import flatten, to_settings
from .runtime.text import with_help
from .step import AlignedDiffusion, Batch, training_steps
from .tap import AlignedTransformer


def main(arguments: list[str]) -> int:
    """`lgf train RECIPE [--overrides]`."""
    recipe = parse(arguments)
    try:
        TrainingRun(recipe).train()
    except BackendUnavailableError as error:
        raise TrainerError(str(error)) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise TrainerError(
            f"{recipe.run.output}: the disk is full. Make room and run again: it goes on from there"
        ) from error
    return 0


def parse(arguments: list[str]) -> Recipe:
    """The recipe that the command line names, with its overrides."""
    name, overrides = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else (None, arguments)
    if name is None and not {"-h", "--help"} & set(overrides):
        raise TrainerError(f"name a recipe first: a YAML file, or one of {', '.join(shipped_recipes())}")
    return tyro.cli(
        with_help(Recipe),
        prog=f"lgf train {name or 'RECIPE'}",
        description=f"{__doc__}\nRecipes: {', '.join(shipped_recipes())}.",
        default=read_recipe(name) if name else Recipe(),
        args=overrides,
        config=(tyro.conf.FlagConversionOff,),
    )


class TrainingRun:
    """A recipe that goes together with its cache and its model, of which only configurations have been read.

    `train` loads the rest and goes on from the last checkpoint, or from the start if there is none.

    Raises:
        TrainerError: something that the user can mend: the recipe, the cache, the model, the checkpoint.
    """

    def __init__(self, recipe: Recipe):
        check(recipe)
        self.recipe = recipe
        self.accelerator = _accelerator(recipe)
        processes, self.is_main = self.accelerator.num_processes, self.accelerator.is_main_process
        if recipe.run.shard and processes == 1:
            raise TrainerError("run.shard shards over processes, and this is one: start with accelerate launch")

        self.cache = WindowCache(recipe.data.cache)
        self.objective = make_objective(recipe.alignment, self.cache.settings)
        self.generator = make_generator(recipe)
        self.shapes = shapes = window_shapes(self.cache)
        self.generator.check_window(shapes, self.cache.folder)
        if recipe.alignment.block >= self.generator.layers:
            last = self.generator.layers - 1
            raise TrainerError(f"alignment.block is {recipe.alignment.block}, and the model has blocks 0 to {last}")
        if self.objective is not None:
            self.objective.check(shapes, self.generator.grid_of_moments(shapes["latents"]), self.cache.folder)
        if recipe.model.train == "full":
            weights = sum(parameter.numel() for parameter in self.generator.empty_transformer().parameters())
            must_fit(weights, self.accelerator.device, shards=processes if recipe.run.shard else 1)
        self.start = self._start() if recipe.start_from else None
        self.facts = {"recipe": to_settings(recipe), "windows": _fingerprint(self.cache)}
        self.checkpoints = Checkpoints(recipe.run.output / "checkpoints", recipe.run.keep)

    def train(self) -> Path:
        """Make the steps that are left; returns the folder with what was trained.

        Raises:
            TrainerError: another run has the folder, a loss is NaN, a window is damaged, or the disk is full.
        """
        output = self.recipe.run.output
        with claim(output) if self.is_main else nullcontext():
            if self.is_main:
                for folder in (output, output / "ema", output / "transformer"):
                    remove_leftovers(folder, age=0)
            self.load()
            if self.is_main:
                settings = yaml.safe_dump(to_settings(self.recipe), sort_keys=False)
                write_atomically(output / "recipe.yaml", settings.encode())
            self._start_tracker()
            self._make_steps()
            self.accelerator.end_training()
            if self.is_main:
                self._conclude()
        return output

    def load(self) -> None:
        """The model with its weights, its optimiser, and the state of the last checkpoint."""
        recipe, processes = self.recipe, self.accelerator.num_processes
        last = self._last_checkpoint()
        self.done = last.step if last else 0
        self.numbers = BatchNumbers(
            range(self.done, recipe.training.steps), recipe.training.batch, recipe.run.per_process,
            self.accelerator.process_index, processes,
        )  # fmt: skip

        torch.manual_seed(mix(recipe.training.seed, "weights"))
        transformer = self.generator.load_transformer(recipe.model)
        projector, blocks = None, self.generator.blocks(transformer)
        if self.objective is not None:
            projector = self.objective.make_projector(recipe.projector, self.generator.channels, self.shapes)
        model = AlignedTransformer(
            transformer, projector, blocks[recipe.alignment.block], self.generator.grid_of, self.generator.video_tokens
        )
        if last or self.start:
            load_weights(last.folder if last else self.start, self.generator, model)
        model.to(self.accelerator.device)
        parallel = parallelise(model, blocks, processes=processes, shard=recipe.run.shard)

        self.metrics = self._metrics()
        self.task = AlignedDiffusion(
            parallel, self.objective, recipe.model.train, self.accelerator.autocast, self.metrics.watch
        )
        groups = {name: (own, getattr(recipe.optimisers, name)) for name, own in self.task.groups().items()}
        decay = recipe.training.ema
        self.state = TrainingState(
            self.generator, model, GroupedAdamW(groups, steps=recipe.training.steps, clip=recipe.training.clip),
            None if decay is None else MovingAverage(trained_parameters(model), decay),
        )  # fmt: skip
        if last:
            self.state.read(last.folder)

    def _make_steps(self) -> None:
        run, total = self.recipe.run, self.recipe.training.steps
        weight = weight_schedule(self.recipe.alignment)
        batches = read_batches(
            self.recipe, self.cache, self.generator, () if self.objective is None else self.objective.tensors, self.numbers,
            self._no_caption(), self.accelerator.device,
        )  # fmt: skip
        self.task.model.train()
        steps = training_steps(self.task, batches, self.state.optimiser, self.numbers.steps, weight=weight)
        with (
            StopRequest() as stop,
            tqdm(total=total, initial=self.done, desc="training", unit="step", disable=not self.is_main) as bar,
        ):
            for losses in steps:
                rates = {f"rate/{name}": rate for name, rate in self.state.optimiser.rates(self.done).items()}
                self.metrics.add(losses, {"weight": weight(self.done), **rates})
                self.done += 1
                if self.state.average is not None:
                    self.state.average.update()
                bar.update()
                saving = self.done % run.save_every == 0 or self.done == total
                alone = self.accelerator.num_processes == 1
                if saving or self.done % run.log_every == 0 or (alone and stop.requested):
                    last = self.metrics.flush()
                    bar.set_postfix({name: f"{last[name]:.3g}" for name in ("diffusion", "alignment", "share")})
                    stopping = self._any(stop.requested)
                    if saving or stopping:
                        self._save()
                    if stopping:
                        break

    def _start(self) -> Path:
        """The folder of the weights to begin with, once it is clear that they fit."""
        recipe, heads = self.recipe, {}
        if self.objective is not None:
            with torch.device("meta"):
                head = self.objective.make_projector(recipe.projector, self.generator.channels, self.shapes)
            heads = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
        weights = self.generator.trained_shapes(recipe.model)
        return starting_weights(Path(recipe.start_from), self.generator.file(recipe.model.train), weights, heads)

    def _last_checkpoint(self) -> Checkpoint | None:
        """What all processes go on from: one of them looks, and tells the others."""
        [last] = broadcast_object_list([self.checkpoints.latest() if self.is_main else None])
        if last and not last.folder.exists():
            raise TrainerError(f"{last.folder} is not to be seen on every node: set run.output to a folder they share")
        if last:
            self._must_go_on(last)
        return last

    def _must_go_on(self, last: Checkpoint) -> None:
        """Refuse to go on with another recipe or other windows, wherever they lie: the result would be neither run's."""
        before = build(last.facts["recipe"], str(last.folder))
        way_out = "Set run.output to a new folder, or go on with what it was begun with"
        for key, now, then in differences(self.recipe, before, but=("run.", "data.cache")):
            raise TrainerError(f"{self.recipe.run.output} was begun with {key} = {then}, and this is {now}. {way_out}")
        if last.facts["windows"] != self.facts["windows"]:
            raise TrainerError(
                f"{self.recipe.run.output} was begun with other windows in {self.cache.folder}. {way_out}"
            )

    def _no_caption(self) -> Tensor | None:
        """The embedding of the empty caption, if it is needed; kept with the run, since its encoder is larger than the model."""
        if not self.recipe.data.caption_dropout:
            return None
        path = self.recipe.run.output / "empty-caption.safetensors"
        with self.accelerator.main_process_first():
            if not path.exists():
                dtype = getattr(torch, self.recipe.model.dtype)
                text = Encoders(self.generator, torch.device("cpu"), dtype, text_only=True).text("").float()
                write_atomically(path, save({"text": text}))
        return load(path.read_bytes())["text"]

    def _save(self) -> None:
        write = self.state.write(self.is_main)
        if self.is_main:
            self.checkpoints.save(self.done, write, self.facts)
        self.accelerator.wait_for_everyone()

    def _conclude(self) -> None:
        output, total = self.recipe.run.output, self.recipe.training.steps
        if self.done < total:
            print(f"{output}: stopped after {self.done} of {total} steps. The same command goes on from there")
            return
        publish(self.checkpoints.place(self.done), output)
        how = f"pipeline.load_lora_weights({str(output)!r})"
        if self.recipe.model.train == "full":
            how = f"{self.generator.transformer}.from_pretrained({str(output / 'transformer')!r})"
        print(f"{output}: trained for {total} steps. Load it with {how}")

    def _metrics(self) -> Metrics:
        return Metrics(
            self.recipe.run.output / "metrics.jsonl" if self.is_main else None,
            done=self.done,
            device=self.accelerator.device,
            mean=lambda values: self.accelerator.reduce(values, "mean"),
            log=lambda values, step: self.accelerator.log(values, step=step),
        )

    def _start_tracker(self) -> None:
        if self.recipe.run.tracker != "none":
            config = {key: str(value) for key, value in flatten(self.recipe).items()}
            self.accelerator.init_trackers("lgf", config, {"tensorboard": {"purge_step": self.done + 1}})

    def _any(self, here: bool) -> bool:
        """Whether something is true on any process. All must ask."""
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), "sum"))


class StopRequest:
    """SIGINT and SIGTERM ask for an end after the step; a second one ends the process at once."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])


# --- parts of a run -------------------------------------------------------------------------------------------


def make_generator(recipe: Recipe) -> Generator:
    """The model of a recipe, of which nothing but configurations is read."""
    generator = Generator.read(recipe.model.path, recipe.model.revision)
    if recipe.model.shift is not None:
        if generator.shift is None:
            raise TrainerError(
                f"model.shift is for flow matching, and {generator.name} predicts velocities. Leave it out"
            )
        generator.shift = recipe.model.shift
    return generator


def window_shapes(cache: WindowCache) -> dict[str, torch.Size]:
    """The shapes of the tensors of the first window; all others have the same."""
    keys = cache.keys()
    if not keys:
        raise TrainerError(f"{cache.folder} has no windows yet. Fill it with lgf extract")
    return {name: tensor.shape for name, tensor in cache.read(keys[0]).tensors.items()}


def weight_schedule(alignment: Alignment) -> Callable[[int], float]:
    """Step -> weight of the alignment term."""
    if alignment.loss == "none":
        return lambda step: 0.0
    if not alignment.schedule:
        return lambda step: alignment.weight
    steps, factors = zip(*alignment.schedule, strict=True)
    return lambda step: alignment.weight * float(np.interp(step, steps, factors))


def read_batches(
    recipe: Recipe,
    cache: WindowCache,
    generator: Generator,
    targets: tuple[str, ...],
    numbers: BatchNumbers,
    no_caption: Tensor | None,
    device: torch.device,
) -> Iterator[list[Batch]]:
    """The batches of one process, step by step, on the device; `no_caption` is the embedding of the empty caption."""
    data, dtype = recipe.data, getattr(torch, recipe.model.dtype if recipe.model.train == "lora" else "float32")
    samples = TrainingSamples(
        cache, generator, targets, seed=recipe.training.seed, image_dropout=data.image_dropout,
        caption_dropout=data.caption_dropout, no_caption=no_caption,
    )  # fmt: skip
    micro_batches = load_samples(samples, numbers, recipe.run.workers, pin=device.type == "cuda")
    for step, sample_list in zip(numbers.steps, micro_batches, strict=True):
        torch.manual_seed(mix(recipe.training.seed, "step", step, numbers.rank))  # for dropout in the LoRA
        batches = []
        for sample in sample_list:
            sample = {name: tensor.to(device, non_blocking=True) for name, tensor in sample.items()}
            batches.append(Batch(*generator.inputs(sample, dtype), {name: sample[name] for name in targets}))
        yield batches


def _accelerator(recipe: Recipe) -> Accelerator:
    tracker = recipe.run.tracker
    if tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise TrainerError("run.tracker is wandb, which is not installed. Get it with: pip install wandb")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # unasked, it takes several processes on CPUs for one each
        mixed_precision=recipe.training.precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=recipe.run.output,
    )


def _fingerprint(cache: WindowCache) -> str:
    """What decides which window a sample is."""
    return hashlib.sha256("\n".join(cache.keys()).encode()).hexdigest()
