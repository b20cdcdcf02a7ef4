"""Token relation distances: VideoREPA and MoAlign."""

from torch import Tensor

from lgf_kernels import TokenRelationLoss

from ..runtime import recipe
from .base import Objective, to_grid


class TokenRelation(Objective):
    """Token relation distances to the teachers' features."""

    name = "relation"
    Options = recipe.Relation

    def __init__(self, alignment, settings, options):
        super().__init__(alignment, settings, options)
        self.criterion = TokenRelationLoss(options.form, options.tau, options.margin, backend=alignment.backend)

    def __call__(self, projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return sum(
            weight * self.criterion(to_grid(projected, teacher), teacher) for teacher, weight in self.teachers(targets)
        )
