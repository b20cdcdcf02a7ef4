"""A training run: the parts of a recipe, the processes it runs on, and what it leaves on disk."""

import hashlib
import importlib.util
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from . import build
from .data.cache import WindowCache
from .data.samples import BatchNumbers
from .generators.cogvideox import load_noise_schedule
from .objectives.base import make_objective
from .optimiser import MovingAverage
from .runtime.checkpoint import Checkpoint, Checkpoints, TrainingState, load_weights, publish, trained_parameters
from .runtime.distributed import parallelise, unwrap
from .runtime.errors import TrainerError
from .runtime.files import claim, write_atomically
from .runtime.metrics import Metrics
from .runtime.recipe import Recipe, check, differences, flatten, to_settings
from .runtime.recipe import build as recipe_of
from .step import Losses, Watch, training_steps


class TrainingRun:
    """A recipe, ready to train from its last checkpoint, or from the start if there is none.

    Raises:
        TrainerError: something that the user can mend: the recipe, the cache, the model, the checkpoint.
    """

    def __init__(self, recipe: Recipe):
        check(recipe)
        self.recipe = recipe
        self.accelerator = _accelerator(recipe)
        if recipe.run.shard and self.accelerator.num_processes == 1:
            raise TrainerError("run.shard shards over processes, and this is one: start with accelerate launch")
        self.cache = WindowCache(recipe.data.cache)
        self.objective = make_objective(recipe.alignment, self.cache.settings)
        self.facts = {"recipe": to_settings(recipe), "windows": _fingerprint(self.cache)}
        self.lock = claim(recipe.run.output) if self._is_main else None
        self.checkpoints = Checkpoints(recipe.run.output / "checkpoints", recipe.run.keep)
        last = self._last_checkpoint()
        if last:
            self._must_go_on(last)
        self.done = last.step if last else 0
        self.numbers = BatchNumbers(
            range(self.done, recipe.training.steps), recipe.training.batch, recipe.run.per_process,
            self.accelerator.process_index, self.accelerator.num_processes,
        )  # fmt: skip

        model = build.make_model(recipe, self.cache, self.objective)
        if last:
            load_weights(last.folder, model)
        self.model = parallelise(
            model.to(self.accelerator.device), model.transformer.transformer_blocks,
            processes=self.accelerator.num_processes, shard=recipe.run.shard,
        )  # fmt: skip
        model = unwrap(self.model)
        decay = recipe.training.ema
        average = None if decay is None else MovingAverage(trained_parameters(model), decay)
        self.state = TrainingState(model, build.make_optimiser(recipe, model), average)
        if last:
            self.state.read(last.folder)

    def train(self) -> Path:
        """Make the steps that are left; returns the folder with the LoRA.

        Raises:
            TrainerError: a loss is NaN, a window is damaged, or the disk is full.
        """
        run, total = self.recipe.run, self.recipe.training.steps
        if self._is_main:
            write_atomically(
                run.output / "recipe.yaml", yaml.safe_dump(to_settings(self.recipe), sort_keys=False).encode()
            )
        self._start_tracker()
        metrics, weight = self._metrics(), build.weight_schedule(self.recipe.alignment)
        with (
            StopRequest() as stop,
            tqdm(total=total, initial=self.done, desc="training", unit="step", disable=not self._is_main) as bar,
        ):
            for losses in self._steps(weight, metrics.watch):
                rates = {f"rate/{name}": rate for name, rate in self.state.optimiser.rates(self.done).items()}
                metrics.add(losses, {"weight": weight(self.done), **rates})
                self.done += 1
                if self.state.average:
                    self.state.average.update()
                bar.update()
                saving = self.done % run.save_every == 0 or self.done == total
                alone = self.accelerator.num_processes == 1
                if saving or self.done % run.log_every == 0 or (alone and stop.requested):
                    last = metrics.flush()
                    bar.set_postfix({name: f"{last[name]:.3g}" for name in ("diffusion", "alignment", "share")})
                    stopping = self._any(stop.requested)
                    if saving or stopping:
                        self._save()
                    if stopping:
                        break
        self.accelerator.end_training()
        if self._is_main:
            self._conclude()
        return run.output

    def _steps(self, weight: Callable[[int], float], watch: Watch) -> Iterator[Losses]:
        recipe, accelerator = self.recipe, self.accelerator
        noise_schedule = load_noise_schedule(recipe.model)
        with accelerator.main_process_first():
            no_caption = build.no_caption(recipe, self.state.model)
        batches = build.read_batches(
            recipe, self.cache, self.state.model, self.objective, self.numbers,
            noise_schedule.config.num_train_timesteps, no_caption, accelerator.device,
        )  # fmt: skip
        self.model.train()
        return training_steps(
            self.model, noise_schedule, batches, self.objective, self.state.optimiser, self.numbers.steps,
            weight=weight, autocast=accelerator.autocast, watch=watch,
        )  # fmt: skip

    def _last_checkpoint(self) -> Checkpoint | None:
        """What all processes go on from: one of them looks, and tells the others."""
        [last] = broadcast_object_list([self.checkpoints.latest() if self._is_main else None])
        if last and not last.folder.exists():
            raise TrainerError(f"{last.folder} is not to be seen on every node: set run.output to a folder they share")
        return last

    def _save(self) -> None:
        write = self.state.write(self._is_main)
        if self._is_main:
            self.checkpoints.save(self.done, write, self.facts)
        self.accelerator.wait_for_everyone()

    def _conclude(self) -> None:
        output, total = self.recipe.run.output, self.recipe.training.steps
        if self.done < total:
            print(f"{output}: stopped after {self.done} of {total} steps. The same command goes on from there")
        else:
            publish(self.checkpoints.place(self.done), output)
            print(f"{output}: trained for {total} steps. Load it with pipeline.load_lora_weights({str(output)!r})")

    def _must_go_on(self, last: Checkpoint) -> None:
        """Refuse to go on with another recipe or other windows, wherever they lie: the result would be neither run's."""
        before = recipe_of(Recipe, last.facts["recipe"], str(last.folder))
        way_out = "Set run.output to a new folder, or go on with what it was begun with"
        for key, now, then in differences(self.recipe, before, but=("run.", "data.cache")):
            raise TrainerError(f"{self.recipe.run.output} was begun with {key} = {then}, and this is {now}. {way_out}")
        if last.facts["windows"] != self.facts["windows"]:
            raise TrainerError(
                f"{self.recipe.run.output} was begun with other windows in {self.cache.folder}. {way_out}"
            )

    def _metrics(self) -> Metrics:
        return Metrics(
            self.recipe.run.output / "metrics.jsonl" if self._is_main else None,
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

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process


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
        cpu=not torch.accelerator.is_available(),  # unasked, it takes several processes on CPUs for one each
        mixed_precision=recipe.training.precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=recipe.run.output,
    )


def _fingerprint(cache: WindowCache) -> str:
    """What decides which window a sample is."""
    return hashlib.sha256("\n".join(cache.keys()).encode()).hexdigest()
