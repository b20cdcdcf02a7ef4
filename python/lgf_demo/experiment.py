"""The comparison: the same student before training, trained without, and trained with the LGF-KL term."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lgf_trainer import AlignedTransformer
from lgf_trainer.evaluation.motion import motion_of
from torch import Tensor

from .losses import lgf
from .model import make_student
from .training import Recipe, Split, read_at, train

NOISE_STEPS = (100, 300, 500, 700, 900)
SHOWN_STEP = 500  # the one whose numbers go to the terminal and whose motion is drawn

Scores = dict[str, float]  # measure -> value


@dataclass(frozen=True)
class Task:
    """What to train on and how to judge.

    Attributes:
        train, held_out: clips; none is in both.
        video: pixels (N, T, 3, 8H, 8W) of the held-out clips, to draw.
        measures: name -> function of held-out features (N, T, H, W, C).
        context: rows that no training changes, by name: what no motion scores, what the teacher scores.
        reference: what the motion is drawn beside, and its name: (N, T-1, H, W, 2) in tokens.
        teacher: the motion (N, T-1, H, W, 2) that the fused teacher shows.
        drawn: (N, T-1, H, W) tokens whose motion is drawn.
    """

    train: Split
    held_out: Split
    video: Tensor
    measures: dict[str, Callable[[Tensor], float]]
    context: dict[str, Scores]
    reference: tuple[str, Tensor]
    teacher: Tensor
    drawn: Tensor


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        losses: arm -> (steps, 2) diffusion and LGF-KL loss of every training step.
        scores: row -> noise step -> measures.
        motion: state -> (N, T-1, H, W, 2) of the held-out clips, read from raw features at `SHOWN_STEP`.
    """

    losses: dict[str, Tensor]
    scores: dict[str, dict[int, Scores]]
    motion: dict[str, Tensor]


RAW_ROWS = {"before": "before training", "without": "trained without LGF-KL", "with": "trained with LGF-KL"}
PROJECTOR_ROW = "trained with LGF-KL, read from the projector"


def compare(task: Task, recipe: Recipe, on_step: Callable[[], object]) -> Outcome:
    """Train both arms from one initialisation, on the same clips and noise, and judge on held-out clips."""
    outcome = Outcome(losses={}, scores={}, motion={})

    def fresh() -> AlignedTransformer:
        return make_student(recipe.seed, task.held_out.grid)

    def judge(state: str, student: AlignedTransformer) -> None:
        raw, projected = {}, {}
        for noise_step in NOISE_STEPS:
            raw[noise_step], projected[noise_step], _ = read_at(student, task.held_out, noise_step)
        outcome.scores[RAW_ROWS[state]] = {step: _score(task, features) for step, features in raw.items()}
        outcome.motion[state] = motion_of(raw[SHOWN_STEP])
        if state == "with":
            outcome.scores[PROJECTOR_ROW] = {step: _score(task, features) for step, features in projected.items()}

    judge("before", fresh())
    for arm, weight in {"without": 0.0, "with": recipe.lgf_weight}.items():
        student = fresh()
        outcome.losses[arm] = train(student, task.train, recipe, lgf(recipe.backend), weight, on_step)
        judge(arm, student)
    return outcome


@torch.no_grad()
def _score(task: Task, features: Tensor) -> Scores:
    return {name: measure(features) for name, measure in task.measures.items()}
