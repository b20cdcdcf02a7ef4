"""Local Gram Flow: to cached logits, or to features that are fused."""

from typing import Any

from torch import Tensor, nn

from lgf_kernels import LocalGramFlowKLLoss, lgf_kl_loss, lgf_kl_loss_from_logits

from ..runtime import recipe
from .base import Objective, on_grid_of, weighted


class LocalGramFlow(Objective):
    """LGF loss to the teachers: their logits as a weighted sum, each with a projector of its own, or their features fused.

    Window, similarity and boundary are those that the cache was made with.
    """

    name = "lgf"
    Options = recipe.Lgf

    def __init__(self, alignment, settings, options):
        super().__init__(alignment, settings, options)
        try:
            shared = {name: settings[name] for name in ("window", "similarity", "boundary")}
        except KeyError as error:
            raise ValueError(f"the cache's settings.json does not say its {error}. Make it with lgf extract") from error
        for name in ("similarity", "boundary"):
            wanted = getattr(options, name)
            if wanted not in (None, shared[name]):
                raise ValueError(
                    f"lgf.{name} is {wanted}, and the cache was made with {shared[name]}. Make one with lgf extract "
                    f"--{name} {wanted}"
                )
        self.lgf = shared | {
            "temperature": options.temperature, "divergence": options.divergence, "backend": alignment.backend
        }  # fmt: skip
        LocalGramFlowKLLoss(**self.lgf)  # checks them here rather than in the first step

    def read_tensors(self):
        if self.options.fusion == "features":
            return super().read_tensors()
        if self.concat:
            raise ValueError("combine is concat, and logits cannot be concatenated. Set lgf.fusion to features")
        return weighted(("teacher_forward", "teacher_backward"), self.alignment)

    def frames(self, shapes):
        return super().frames(shapes) + (self.options.fusion != "features")

    def make_projector(self, options, in_channels, shapes):
        def one() -> nn.Module:
            return super(LocalGramFlow, self).make_projector(options, in_channels, shapes)

        return Parallel(one() for _ in self.tensors) if self.options.fusion == "separate" else one()

    def __call__(self, projected: Any, targets: dict[str, Tensor]) -> Tensor:
        direction = self.options.direction
        if self.options.fusion == "features":
            teacher = sum(weight * tensor.float() for tensor, weight in self.teachers(targets))
            return lgf_kl_loss(on_grid_of(projected, teacher), teacher, direction=direction, **self.lgf)
        options = {"direction": direction, "logits_direction": "forward", **self.lgf}
        logits = [targets[name] for name in self.tensors]
        if self.options.fusion == "logits":
            return lgf_kl_loss_from_logits(projected, logits, teacher_weights=self.weights, **options)
        each = zip(projected, logits, self.weights, strict=True)
        return sum(weight * lgf_kl_loss_from_logits(features, [one], **options) for features, one, weight in each)


class Parallel(nn.ModuleList):
    """Several projectors of the same features."""

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(projector(features) for projector in self)
