"""Distances to the teachers' features, token by token."""

from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from .base import Objective, to_grid


class FeatureDistance(Objective):
    """Mean squared error to the teachers' features, each with its weight (SAM2VideoX's ablation "w/o LGF")."""

    name = "features"

    def channels(self, shapes):
        widths = [shapes[name][-1] for name in self.tensors]
        return sum(widths) if self.concat else widths[0]

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return mse_loss(student, teacher)

    def __call__(self, projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return sum(
            weight * self.distance(to_grid(projected, teacher).float(), teacher.float())
            for teacher, weight in self.teachers(targets)
        )


class Repa(FeatureDistance):
    """REPA: 1 - cosine similarity."""

    name = "repa"

    def distance(self, student, teacher):
        return 1 - cosine_similarity(student, teacher, dim=-1).mean()
