"""`lgf train`: a run of a recipe, from its parts to what it leaves. Started again, it goes on from its last checkpoint."""

import hashlib
import importlib.util
import signal
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lgf_kernels import BackendUnavailableError

from .data.cache import WindowCache, transform_of
from .data.samples import BatchNumbers, load_samples, mix
from .optimiser import GroupedAdamW, MovingAverage
from .runtime.checkpoint import Checkpoint, Checkpoints, TrainingState, publish, starting_weights, trained_parameters
from .runtime.distributed import parallelise
from .runtime.errors import TrainerError, is_disk_full
from .runtime.files import claim, remove_leftovers, write_atomically
from .runtime.metrics import Metrics
from .runtime.progress import progress
from .runtime.recipe import Optimiser, Recipe, build, check, differences
from .runtime.settings import flatten, to_settings
from .step import training_steps
from .tasks.base import make_task


def run(recipe: Recipe) -> None:
    """Train by a recipe."""
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


class TrainingRun:
    """A recipe that fits its cache and its model, of which only configurations have been read.

    `train` loads the rest and goes on from the last checkpoint, or from the start if there is none.

    Raises:
        TrainerError: the recipe, the cache, the model or the checkpoint is not usable; the message gives the way out.
    """

    def __init__(self, recipe: Recipe):
        check(recipe)
        self.recipe = recipe
        self.accelerator = _accelerator(recipe)
        self.is_main = self.accelerator.is_main_process
        if recipe.run.shard and self.accelerator.num_processes == 1:
            raise TrainerError("run.shard shards over processes, and this is one: start with accelerate launch")
        processes, context = self.accelerator.num_processes, recipe.run.context
        if processes % context:
            raise TrainerError(
                f"run.context spreads each window over {context} processes, and there are {processes}: start a multiple of it "
                "with accelerate launch"
            )
        cache = WindowCache(recipe.data.cache, transforms=recipe.data.transforms)
        keys = cache.filled()
        if missing := " ".join(sorted(set(recipe.data.transforms) - set(map(transform_of, keys)))):
            raise TrainerError(
                f"data.transforms names {missing}, and {cache.folder} has no such windows: run lgf extract again, with "
                f"--transforms {missing}"
            )
        self.task = make_task(recipe, cache, self.accelerator)
        if context > 1 and not self.task.spreads:
            raise TrainerError(f"run.context is for video models, and the task {recipe.task} trains none. Leave it out")
        self.start = None
        if recipe.start_from:
            self.start = starting_weights(Path(recipe.start_from), self.task.trained_shapes())
        windows = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        self.facts = {"recipe": to_settings(recipe), "windows": windows}
        self.checkpoints = Checkpoints(recipe.run.output / "checkpoints", recipe.run.keep)

    def train(self) -> Path:
        """Make the steps that are left; return the folder with what was trained.

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

    # --- parts ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model with its weights, its optimiser, and the state of the last checkpoint."""
        task, training, run, accelerator = self.task, self.recipe.training, self.recipe.run, self.accelerator
        last = self._last_checkpoint()
        self.done = last.step if last else 0
        self.numbers = BatchNumbers(
            range(self.done, training.steps), training.batch, run.per_process,
            accelerator.process_index // run.context, accelerator.num_processes // run.context,
        )  # fmt: skip

        torch.manual_seed(mix(training.seed, "weights"))
        model = task.make_model()
        if last or self.start:
            task.read(last.folder if last else self.start, model)
        model.to(accelerator.device)
        wrapped = parallelise(model, task.blocks(model), processes=accelerator.num_processes, shard=run.shard)
        groups = task.groups(model)
        self.metrics = Metrics(
            run.output / "metrics.jsonl" if self.is_main else None,
            names=task.losses_named,
            way_out=self._steadier(groups.values()),
            done=self.done,
            device=accelerator.device,
            mean=lambda values: accelerator.reduce(values, "mean"),
            log=lambda values, step: accelerator.log(values, step=step),
        )
        task.begin(wrapped, self.metrics.watch)

        optimiser = GroupedAdamW(groups, steps=training.steps, clip=training.clip)
        average = None if training.ema is None else MovingAverage(trained_parameters(model), training.ema)
        self.state = TrainingState(task.save, model, optimiser, average)
        if last:
            self.state.read(last.folder)

    def _last_checkpoint(self) -> Checkpoint | None:
        """Return what all processes go on from: one of them looks, and tells the others.

        Raises:
            TrainerError: it is of another recipe or other windows, and the result would be neither run's.
        """
        [last] = broadcast_object_list([self.checkpoints.latest() if self.is_main else None])
        if last is None:
            return None
        if not last.folder.exists():
            raise TrainerError(f"{last.folder} is not visible on every node: set run.output to a folder they share")
        begun = f"{self.recipe.run.output} was begun with"
        way_out = "Set run.output to a new folder, or go on with what it was begun with"
        before = build(last.facts.get("recipe"), str(last.folder))
        for key, now, then in differences(self.recipe, before, but=("run.", "data.cache")):
            raise TrainerError(f"{begun} {key} = {then}, and this is {now}. {way_out}")
        if last.facts.get("windows") != self.facts["windows"]:
            raise TrainerError(f"{begun} other windows in {self.recipe.data.cache}. {way_out}")
        return last

    def _steadier(self, groups: Iterable[tuple[Any, Optimiser]]) -> str:
        """Return what to try when a loss is no longer a number."""
        used = {id(settings) for _, settings in groups}
        rates = [f"--optimisers.{key}.rate" for key, own in vars(self.recipe.optimisers).items() if id(own) in used]
        return f"Train into a new --run.output with lower rates ({', '.join(rates)}), or {self.task.steadier}"

    def _start_tracker(self) -> None:
        if self.recipe.run.tracker != "none":
            config = {key: str(value) for key, value in flatten(self.recipe).items()}
            self.accelerator.init_trackers("lgf", config, {"tensorboard": {"purge_step": self.done + 1}})

    # --- loop -------------------------------------------------------------------------------------------------

    def _make_steps(self) -> None:
        run, total, task, optimiser = self.recipe.run, self.recipe.training.steps, self.task, self.state.optimiser
        task.model.train()
        steps = training_steps(task, self._batches(), optimiser, self.numbers.steps, weight=task.weight)
        with (
            StopRequest() as stop,
            progress(total=total, initial=self.done, desc="training", unit="step", disable=not self.is_main) as bar,
        ):
            for losses in steps:
                facts = {f"rate/{name}": rate for name, rate in optimiser.rates(self.done).items()}
                if (weight := task.weight(self.done)) is not None:
                    facts = {"weight": weight} | facts
                saving = (self.done + 1) % run.save_every == 0 or self.done + 1 == total
                if saving and self.is_main:
                    facts |= task.evaluate(self.state.model)
                self.metrics.add(losses, facts)
                self.done += 1
                if self.state.average is not None:
                    self.state.average.update()
                bar.update()
                alone = self.accelerator.num_processes == 1
                if saving or self.done % run.log_every == 0 or (alone and stop.requested):
                    last = self.metrics.flush()
                    bar.set_postfix(
                        {name: f"{last[name]:.3g}" for name in (*task.losses_named, "share")}, refresh=False
                    )
                    stopping = self._any(stop.requested)
                    if saving or stopping:
                        self._save()
                    if stopping:
                        break

    def _batches(self) -> Iterator[list[Any]]:
        """Yield the batches of this process, step by step, on its device."""
        device, seed = self.accelerator.device, self.recipe.training.seed
        loaded = load_samples(self.task.samples(), self.numbers, self.recipe.run.workers, pin=device.type == "cuda")
        for step, samples in zip(self.numbers.steps, loaded, strict=True):
            torch.manual_seed(mix(seed, "step", step, self.numbers.rank))  # for dropout in the model
            yield [
                self.task.batch({name: tensor.to(device, non_blocking=True) for name, tensor in sample.items()})
                for sample in samples
            ]

    def _any(self, here: bool) -> bool:
        """Return whether something is true on any process. All must ask."""
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), "sum"))

    # --- save -------------------------------------------------------------------------------------------------

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
        print(f"{output}: trained for {total} steps. Load it with {self.task.loaded_with(output)}")


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


def _accelerator(recipe: Recipe) -> Accelerator:
    tracker = recipe.run.tracker
    if tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise TrainerError("run.tracker is wandb, which is not installed. Get it with: pip install wandb")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise accelerate treats several processes on CPUs as one each
        mixed_precision=recipe.training.precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=recipe.run.output,
    )
