"""The study behind `lgf demo --losses`: one student for each alignment loss and seed, judged on clips with known motion.

Every run is a row of a file that is there as soon as it is measured; the same command goes on from what is there. All runs of a
seed begin with the same weights and see the same clips, noise and noise steps. Losses are of different units, so each is
weighted such that its first gradient at the aligned block is as long as that of LGF-KL at its published weight: nothing is
tuned, for any of them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from lgf_bench import results
from lgf_bench.memory import peak_memory
from lgf_bench.providers import BACKENDS, provider, runnable
from lgf_bench.timing import interleaved, spread, use_clock
from lgf_trainer import AlignedTransformer
from lgf_trainer.evaluation.motion import end_point_error, expected_motion, motion_of
from lgf_trainer.step import Objective
from torch import Tensor

from lgf_kernels import local_gram_flow

from .clips import make_clip
from .cost import SHAPE
from .experiment import NOISE_STEPS, SHOWN_STEP
from .losses import LOSSES, POINTS
from .model import make_scheduler, make_student
from .tasks import split_of
from .training import Recipe, batches, read_at, train

RUNS, COSTS = "which-loss.jsonl", "which-loss-cost.jsonl"
BEFORE, REFERENCE = "before training", "lgf-kl"
#: Batches over which the first gradient of a loss is measured.
FIRST = 8


@dataclass(frozen=True)
class Settings:
    """Size of the study."""

    steps: int = 300
    seeds: tuple[int, ...] = (0, 1, 2)
    grid: tuple[int, int, int] = (5, 9, 15)
    train_clips: int = 96
    held_out_clips: int = 12
    cost_shape: tuple[int, ...] = SHAPE
    rounds: int = 7

    def key(self, loss: str, seed: int) -> dict:
        """Return what tells a run apart; runs with the same are the same run."""
        size = {
            "steps": self.steps,
            "grid": list(self.grid),
            "train": self.train_clips,
            "held_out": self.held_out_clips,
        }
        return {"loss": loss, "seed": seed} | size

    def cost_key(self, loss: str) -> dict:
        return {"loss": loss, "cost_shape": list(self.cost_shape), "rounds": self.rounds}


QUICK = Settings(
    steps=3, seeds=(0, 1), grid=(3, 6, 9), train_clips=3, held_out_clips=2, cost_shape=(1, 2, 6, 9, 16), rounds=2
)


def missing(folder: Path, settings: Settings, losses: list[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the runs (loss, seed) and the costs that a folder does not hold yet; a seed's runs stand together."""
    runs, costs = results.read(folder / RUNS), results.read(folder / COSTS)
    return (
        [(n, s) for s in settings.seeds for n in (BEFORE, *losses) if not _of(runs, settings.key(n, s))],
        [name for name in losses if LOSSES[name].case and not _of(costs, settings.cost_key(name))],
    )


def _of(rows: list[dict], key: dict) -> list[dict]:
    """Return the rows that have all of a key."""
    return [row for row in rows if key.items() <= {k: row.get(k) for k in key}.items()]


def run(folder: Path, settings: Settings, losses: list[str], backend: str | None) -> Iterator[str]:
    """Make what is missing; yield the name of each run and cost when its row is on disk."""
    runs, costs = missing(folder, settings, losses)
    world = None
    for name, seed in runs:
        if world is None or world.seed != seed:
            world = World(settings, seed, backend)
        start = time.process_time()
        found = world.before() if name == BEFORE else world.trained(name)
        seconds = {"cpu_seconds": round(time.process_time() - start, 1)}
        results.append(folder / RUNS, [settings.key(name, seed) | found | seconds | results.provenance("cpu")])
        yield f"{name}, seed {seed}"
    for name in costs:
        row = settings.cost_key(name) | cost_of(name, settings, backend)
        results.append(folder / COSTS, [row | results.provenance("cpu")])
        yield f"cost of {name}"


def cost_of(name: str, settings: Settings, backend: str | None) -> dict:
    """Return time and peak memory of a loss and its gradient, as `lgf bench` measures them, on the backend that is taken here."""
    case = LOSSES[name].case(settings.cost_shape)
    chosen = backend or next(one for one in runnable(case) if one in BACKENDS)
    with use_clock("cpu"):  # one thread, on machines that may be busy with other things
        seconds = interleaved({name: provider(chosen, case)}, case, range(settings.rounds))[name]["both"]
    return {"provider": chosen, "clock": "cpu"} | spread(seconds) | {"peak_bytes": peak_memory(case, chosen)}


class World:
    """Clips of a seed, and what any loss makes of the student on them."""

    def __init__(self, settings: Settings, seed: int, backend: str | None):
        self.settings, self.seed, self.backend = settings, seed, backend
        count = settings.train_clips + settings.held_out_clips
        clips = [make_clip(number + 10_000 * seed, *settings.grid) for number in range(count)]
        self._train, self._judged = clips[: settings.train_clips], clips[settings.train_clips :]
        self.train, self.held_out = split_of(self._train, POINTS), split_of(self._judged)
        self.motion = torch.stack([clip.motion for clip in self._judged])
        self.moving = torch.stack([clip.moving for clip in self._judged])

    def before(self) -> dict:
        """Return the scores of the untrained student, of no motion at all and of the teachers."""
        fused = sum(local_gram_flow(teacher) for teacher in self.held_out.teachers) / len(self.held_out.teachers)
        context = {"no motion": torch.zeros_like(self.motion), "the teacher itself": expected_motion(fused)}
        known = {name: end_point_error(found, self.motion, self.moving) for name, found in context.items()}
        return self.scores(make_student(self.seed, self.settings.grid)) | {"context": known}

    def trained(self, name: str) -> dict:
        """Return the scores of the student after training with a loss, and the loss's weight."""
        loss, student = LOSSES[name], self._student(name)
        objective = None if loss.objective is None else loss.objective(self.backend)
        weight = 0.0 if objective is None else 0.5 * self._first_gradient / self.first_gradient(name)
        recipe = Recipe(self.settings.steps, self.seed, backend=self.backend)
        history = train(student, self.train, recipe, objective, weight, on_step=lambda: None)
        ends = history[:FIRST].mean(0)[1].item(), history[-FIRST:].mean(0)[1].item()
        return self.scores(student) | {"weight": weight, "alignment": ends}

    def scores(self, student: AlignedTransformer) -> dict:
        """Return end-point errors over the moving tokens of held-out clips, and the error of the prediction."""
        readings = {step: read_at(student, self.held_out, step) for step in NOISE_STEPS}
        raw = readings[SHOWN_STEP].raw
        read = {"epe": motion_of(raw), "probe_epe": self._probed(read_at(student, self.train, SHOWN_STEP).raw, raw)}
        measured = {name: end_point_error(motion, self.motion, self.moving) for name, motion in read.items()}
        return measured | {"diffusion": mean(reading.error for reading in readings.values())}

    def first_gradient(self, name: str) -> float:
        """Return the mean length of a loss's gradient at the untrained student's aligned block."""
        student, objective = self._student(name), LOSSES[name].objective(self.backend)
        lengths = []
        for (batch,) in islice(batches(self.train, self.seed, make_scheduler()), FIRST):
            with torch.no_grad():
                raw = student.predict_and_capture(batch.hidden, **batch.conditions)[1]
            lengths.append(_gradient(objective, student, raw.requires_grad_(), batch.targets).norm())
        return torch.stack(lengths).mean().item()

    @cached_property
    def _first_gradient(self) -> float:
        return self.first_gradient(REFERENCE)

    def _student(self, name: str) -> AlignedTransformer:
        joined = sum(teacher.shape[-1] for teacher in self.train.teachers)
        return make_student(self.seed, self.settings.grid, *([joined] if LOSSES[name].joined else []))

    def _probed(self, seen: Tensor, raw: Tensor) -> Tensor:
        """Return the motion (N, T-1, H, W, 2) of held-out clips that a linear map, fitted to the training clips, reads.

        From a token's features in both frames of a pair. No loss of the study has it as its own reading.
        """
        motion = torch.stack([clip.motion for clip in self._train])
        visible = torch.stack([clip.visible for clip in self._train])
        return _pairs(raw) @ ridge(_pairs(seen)[visible], motion[visible])


def _gradient(objective: Objective, student: AlignedTransformer, raw: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return torch.autograd.grad(objective(student.projector(raw), targets), raw)[0]


def _pairs(raw: Tensor) -> Tensor:
    """Return what the probe reads of each token (N, T-1, H, W, 2 C + 1): both frames of a pair, and a constant."""
    return torch.cat([raw[:, :-1], raw[:, 1:], torch.ones_like(raw[:, 1:, ..., :1])], -1)


def ridge(x: Tensor, y: Tensor, strength: float = 1e-3) -> Tensor:
    """Return w that minimises |x w - y|^2 + strength * mean eigenvalue * |w|^2, computed in float64."""
    x, y = x.double(), y.double()
    gram = x.T @ x
    gram.diagonal().add_(strength * gram.diagonal().mean())
    return torch.linalg.solve(gram, x.T @ y).float()
