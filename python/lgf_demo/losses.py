"""Alignment losses that the demonstration trains with: what each computes, where it is from, and its case in `lgf bench`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lgf_bench.families.base import Case
from lgf_bench.families.gram_flow import LgfKl
from lgf_bench.families.patch_cosine import PatchCosine
from lgf_bench.families.point_correspondence import PointCorrespondence
from lgf_bench.families.token_relation import TokenRelation
from lgf_trainer.step import Objective
from torch import Tensor

from lgf_kernels import PatchCosineLoss, PointCorrespondenceLoss, TokenRelationLoss, lgf_kl_loss

from .titles import POINTS, REDUCTION, TITLES
from .training import teachers_of


class AlignmentLoss(NamedTuple):
    """One of the losses.

    Attributes:
        label, source: of its title.
        objective: backend -> (projected features, targets of the clips) -> loss; None: there is no alignment term.
        case: shape (B, T, H, W, C) of student and teacher -> the case by which time and memory are measured.
        joined: the student's channels are those of all teachers together, instead of its own.
    """

    label: str
    source: str
    objective: Callable[[str | None], Objective] | None = None
    case: Callable[[tuple[int, ...]], Case] | None = None
    joined: bool = False


def lgf(backend: str | None, divergence: str = "kl") -> Objective:
    """Return the loss between the student's windows and the fused teachers'."""
    return lambda projected, targets: lgf_kl_loss(
        projected, teachers_of(targets), divergence=divergence, backend=backend
    )


def relation(backend: str | None, form: str, reduction: int = 1) -> Objective:
    """Return the mean over the teachers of the distance between token relations, of cells of some tokens a side."""
    loss = TokenRelationLoss(form, backend=backend)

    def objective(projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        student, *teachers = (reduced(x, reduction) for x in (projected, *teachers_of(targets)))
        return sum(loss(student, teacher) for teacher in teachers) / len(teachers)

    return objective


def patch_cosine(backend: str | None) -> Objective:
    """Return the cosine distance to all teachers, joined."""
    loss = PatchCosineLoss(backend=backend)
    return lambda projected, targets: loss(projected, teachers_of(targets))


def points(backend: str | None) -> Objective:
    """Return the distance of points from their tracks."""
    loss = PointCorrespondenceLoss(backend=backend)
    return lambda projected, targets: loss(projected, targets["queries"], targets["tracks"], targets["visible"])


def reduced(features: Tensor, reduction: int) -> Tensor:
    """Average features (B, T, H, W, C) over cells of `reduction` x `reduction` tokens."""
    if reduction == 1:
        return features
    return features.unflatten(3, (-1, reduction)).unflatten(2, (-1, reduction)).mean((3, 5))


@dataclass(frozen=True)
class LgfL2(LgfKl):
    """LGF-KL's case with the squared error of the logits instead."""

    def call(self, **arguments) -> Tensor:
        return super().call(**arguments, divergence="l2")


def _relations(form: str, reduction: int = 1) -> Callable[[tuple[int, ...]], Case]:
    def case(shape: tuple[int, ...]) -> TokenRelation:
        B, T, H, W, C = shape
        return TokenRelation((B, T, (H // reduction) * (W // reduction), C), form=form)

    return case


#: By the names that `lgf demo --losses` takes. A loss more is an entry more, here and in `TITLES`.
PARTS = {
    "none": {},
    "lgf-kl": {"objective": lgf, "case": LgfKl},
    "lgf-l2": {"objective": lambda backend: lgf(backend, "l2"), "case": LgfL2},
    "videorepa": {"objective": lambda backend: relation(backend, "videorepa"), "case": _relations("videorepa")},
    "videorepa-reduced": {
        "objective": lambda backend: relation(backend, "videorepa", REDUCTION),
        "case": _relations("videorepa", REDUCTION),
    },
    "moalign": {"objective": lambda backend: relation(backend, "moalign"), "case": _relations("moalign")},
    "gram": {"objective": lambda backend: relation(backend, "gram"), "case": _relations("gram")},
    "patch-cosine": {
        "objective": patch_cosine,
        "case": lambda shape: PatchCosine((*shape[:-1], 2 * shape[-1]), 2 * shape[-1:]),
        "joined": True,
    },
    "points": {"objective": points, "case": lambda shape: PointCorrespondence((shape[0], POINTS, *shape[1:]))},
}
LOSSES = {name: AlignmentLoss(*title, **PARTS[name]) for name, title in TITLES.items()}
