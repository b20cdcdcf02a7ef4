"""Distances to the teachers' features: token by token, or of the tokens' relations (VideoREPA, MoAlign)."""

from abc import abstractmethod

from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from lgf_kernels import TokenRelationLoss

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
    """REPA: 1 - cosine similarity."""

    name = "repa"

    def distance(self, student, teacher):
        return 1 - cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


class TokenRelation(Distance):
    """Token relation distances."""

    name = "relation"
    Options = recipe.Relation

    def __init__(self, alignment, settings, options):
        super().__init__(alignment, settings, options)
        self.criterion = TokenRelationLoss(options.form, options.tau, options.margin, backend=alignment.backend)

    def distance(self, student, teacher):
        return self.criterion(student, teacher)
