"""Mask supervision, the baseline of SAM2VideoX."""

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .base import Objective


class MaskSupervision(Objective):
    """Cross entropy of the subject's mask, predicted by a linear layer on the projector."""

    name = "mask"

    def read_tensors(self):
        return ("masks",), (1.0,)

    def make_projector(self, options, in_channels, shapes):
        return nn.Sequential(super().make_projector(options, in_channels, shapes), nn.Linear(options.widths[-1], 1))

    def __call__(self, projected: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return binary_cross_entropy_with_logits(projected.squeeze(-1).float(), targets["masks"].float())
