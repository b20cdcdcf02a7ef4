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

from .training import teachers_of

#: Rows and columns of tokens for one that VideoREPA compares: 30 x 45 and 10 x 15.
REDUCTION = 3
POINTS = 256  # of a clip


class AlignmentLoss(NamedTuple):
    """One of the losses.

    Attributes:
        label: in tables and pictures.
        source: the paper, with the weight that it gives.
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


#: By the names that `lgf demo --losses` takes, in the order of the table. A loss more is an entry more.
LOSSES = {
    "none": AlignmentLoss("none (diffusion alone)", "-"),
    "lgf-kl": AlignmentLoss("LGF-KL", "SAM2VideoX, 0.5", lgf, LgfKl),
    "lgf-l2": AlignmentLoss("LGF-l2", 'SAM2VideoX, "w/o KL", 0.5', lambda backend: lgf(backend, "l2"), LgfL2),
    "videorepa": AlignmentLoss(
        "token relations, full resolution", "VideoREPA, 0.5", lambda backend: relation(backend, "videorepa"),
        _relations("videorepa"),
    ),
    "videorepa-reduced": AlignmentLoss(
        f"token relations of {REDUCTION} x {REDUCTION} cells", "VideoREPA as published, 0.5",
        lambda backend: relation(backend, "videorepa", REDUCTION), _relations("videorepa", REDUCTION),
    ),
    "moalign": AlignmentLoss(
        "soft token relations", "MoAlign, stage 2, 0.5", lambda backend: relation(backend, "moalign"),
        _relations("moalign"),
    ),
    "gram": AlignmentLoss(
        "Gram matrices of frames", "DINOv3, 2", lambda backend: relation(backend, "gram"), _relations("gram")
    ),
    "patch-cosine": AlignmentLoss(
        "patch cosine, both teachers joined", "REPA, Align4Gen, 0.5", patch_cosine,
        lambda shape: PatchCosine((*shape[:-1], 2 * shape[-1]), 2 * shape[-1:]), joined=True,
    ),
    "points": AlignmentLoss(
        f"point correspondence, {POINTS} tracks", "Track4Gen, 8 in its own units", points,
        lambda shape: PointCorrespondence((shape[0], POINTS, *shape[1:])),
    ),
}  # fmt: skip
