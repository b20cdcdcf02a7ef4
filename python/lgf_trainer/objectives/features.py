"""Distances to the teachers' features: token by token, or of the tokens' relations (VideoREPA, MoAlign)."""

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from lgf_kernels import PatchCosineLoss, TokenRelationLoss

from ..runtime import recipe
from .base import Objective, on_grid_of


class Distance(Objective):
    """Base of the sum of distances to several teachers, each with its weight."""

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of the projected features, on the teacher's rows and columns, to the teacher's."""

    def __call__(self, projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return sum(
            weight * self.distance(on_grid_of(projected, teacher), teacher)
            for teacher, weight in self.teachers(targets)
        )


class FeatureDistance(Distance):
    """Mean squared error to the teachers' features (SAM2VideoX's ablation "w/o LGF")."""

    name = "features"

    def channels(self, shapes):
        widths = [shapes[name][-1] for name in self.tensors]
        return sum(widths) if self.concat else widths[0]

    def distance(self, student, teacher):
        return mse_loss(student.float(), teacher.float())


class Repa(FeatureDistance):
    """REPA: 1 - cosine similarity; to several teachers concatenated, the loss of Align4Gen."""

    name = "repa"

    def __init__(self, alignment, settings, options):
        super().__init__(alignment, settings, options)
        self.criterion = PatchCosineLoss(self.name, **asdict(options), backend=alignment.backend)

    def __call__(self, projected, targets):
        if not self.concat:
            return super().__call__(projected, targets)
        features = [targets[name] for name in self.tensors]  # the loss stores no concatenation
        return self.criterion(on_grid_of(projected, features[0]), features)

    def distance(self, student, teacher):
        return self.criterion(student, teacher)


@dataclass(frozen=True)
class CrepaOptions:
    """Of CREPA, as published."""

    tau: Annotated[float, Field(gt=0)] = 1.0
    """In frames: a frame so far away counts exp(-1) of the own one."""
    neighbours: Annotated[int, Field(ge=0)] = 1
    """Frames before and after that count."""


class Crepa(Repa):
    """CREPA: REPA to the teacher's neighbouring frames, too, by weights. Its sum over frames is F times this mean."""

    name = "crepa"
    Options = CrepaOptions


class TokenRelation(Distance):
    """Token relation distances."""

    name = "relation"
    Options = recipe.Relation

    def __init__(self, alignment, settings, options):
        super().__init__(alignment, settings, options)
        self.criterion = TokenRelationLoss(options.form, options.tau, options.margin, backend=alignment.backend)

    def distance(self, student, teacher):
        return self.criterion(student, teacher)
