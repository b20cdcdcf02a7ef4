"""What the projected features are asked to look like: the alignment terms, by name.

An objective says which tensors of a window it reads (`tensors`), what projector it needs (`make_projector`), and is a
function of (what the projector puts out, those tensors) -> scalar loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, cosine_similarity, mse_loss

from lgf_kernels import LocalGramFlowKLLoss, TokenRelationLoss, lgf_kl_loss, lgf_kl_loss_from_logits

from ..projector import Projector
from ..runtime import recipe
from ..runtime.errors import TrainerError

Tensors = dict[str, Tensor]


class Objective:
    """Base of the alignment terms. `tensors`: names of the tensors of a window that it reads."""

    tensors: tuple[str, ...]

    def frames(self, shapes: dict[str, torch.Size]) -> int:
        """Frames that the projector must put out, from the shapes of the tensors of a window."""
        return shapes[self.tensors[0]][0]

    def channels(self, shapes: dict[str, torch.Size]) -> int | None:
        """Channels that the projector must put out; None: those of the recipe."""
        return None

    def make_projector(self, options: recipe.Projector, in_channels: int, shapes: dict[str, torch.Size]) -> nn.Module:
        """A projector for features of `in_channels` channels."""
        widths = (*options.widths[:-1], self.channels(shapes) or options.widths[-1])
        return Projector(in_channels, options.hidden, widths, self.frames(shapes), options.groups)

    def __call__(self, projected: Any, targets: Tensors) -> Tensor:
        raise NotImplementedError


# --- Local Gram Flow ------------------------------------------------------------------------------------------


@dataclass
class LocalGramFlow(Objective):
    """LGF loss to the cached teacher logits, fused with `weights`; `lgf` are the library's options."""

    tensors: tuple[str, ...]
    weights: tuple[float, ...]
    direction: str
    lgf: dict[str, Any]

    def frames(self, shapes):
        return shapes[self.tensors[0]][0] + 1

    def __call__(self, projected, targets):
        options = self.lgf | {
            "teacher_weights": self.weights,
            "direction": self.direction,
            "logits_direction": "forward",
        }
        return lgf_kl_loss_from_logits(projected, [targets[name] for name in self.tensors], **options)


@dataclass
class SeparateProjectors(LocalGramFlow):
    """LGF loss with one projector for each teacher (an ablation of the paper)."""

    def make_projector(self, options, in_channels, shapes):
        return Parallel(
            super(SeparateProjectors, self).make_projector(options, in_channels, shapes) for _ in self.tensors
        )

    def __call__(self, projected, targets):
        losses = []
        for features, name, weight in zip(projected, self.tensors, self.weights, strict=True):
            single = LocalGramFlow((name,), (1.0,), self.direction, self.lgf)
            losses.append(weight * single(features, targets))
        return sum(losses)


@dataclass
class FusedFeatures(Objective):
    """LGF loss to the weighted sum of the teachers' features (an ablation of the paper, known to be bad)."""

    tensors: tuple[str, ...]
    weights: tuple[float, ...]
    direction: str
    lgf: dict[str, Any]

    def __call__(self, projected, targets):
        teacher = sum(weight * targets[name].float() for name, weight in zip(self.tensors, self.weights, strict=True))
        return lgf_kl_loss(to_grid(projected, teacher), teacher, direction=self.direction, **self.lgf)


# --- features -------------------------------------------------------------------------------------------------


@dataclass
class FeatureDistance(Objective):
    """Mean squared error to the teachers' features, each with its weight (the paper's ablation "w/o LGF")."""

    tensors: tuple[str, ...]
    weights: tuple[float, ...]

    def channels(self, shapes):
        return shapes[self.tensors[0]][-1]

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return mse_loss(student, teacher)

    def __call__(self, projected, targets):
        losses = []
        for name, weight in zip(self.tensors, self.weights, strict=True):
            teacher = targets[name].float()
            losses.append(weight * self.distance(to_grid(projected, teacher).float(), teacher))
        return sum(losses)


@dataclass
class Repa(FeatureDistance):
    """REPA: 1 - cosine similarity to the teachers' features, token by token."""

    def distance(self, student, teacher):
        return 1 - cosine_similarity(student, teacher, dim=-1).mean()


@dataclass
class TokenRelation(Objective):
    """Token relation distances (VideoREPA, MoAlign) to the teachers' features."""

    tensors: tuple[str, ...]
    weights: tuple[float, ...]
    criterion: TokenRelationLoss

    def __call__(self, projected, targets):
        losses = []
        for name, weight in zip(self.tensors, self.weights, strict=True):
            teacher = targets[name]
            losses.append(weight * self.criterion(to_grid(projected, teacher), teacher))
        return sum(losses)


def to_grid(features: Tensor, teacher: Tensor) -> Tensor:
    """Features (B, T, H, W, C) averaged over the cells of the teacher's rows and columns (our reading)."""
    size = teacher.shape[2:4]
    if features.shape[2:4] == size:
        return features
    planes = features.permute(0, 1, 4, 2, 3).flatten(0, 1)
    pooled = adaptive_avg_pool2d(planes, size).unflatten(0, features.shape[:2])
    return pooled.permute(0, 1, 3, 4, 2).contiguous()


# --- mask -----------------------------------------------------------------------------------------------------


class MaskSupervision(Objective):
    """Cross entropy of the subject's mask, predicted by a linear layer on the projector (the paper's baseline)."""

    tensors = ("masks",)

    def make_projector(self, options, in_channels, shapes):
        return nn.Sequential(super().make_projector(options, in_channels, shapes), nn.Linear(options.widths[-1], 1))

    def __call__(self, projected, targets):
        return binary_cross_entropy_with_logits(projected.squeeze(-1).float(), targets["masks"].float())


# --- by name --------------------------------------------------------------------------------------------------


class Parallel(nn.ModuleList):
    """Several projectors of the same features."""

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(projector(features) for projector in self)


def make_objective(alignment: recipe.Alignment, settings: dict[str, Any]) -> Objective | None:
    """The objective of a recipe, for a cache made with `settings`; None for a LoRA alone.

    Raises:
        TrainerError: the losses cannot have these options.
    """
    names, weights = _pair(alignment.features, alignment.k)
    features = tuple(f"features_{name}" for name in names)

    def local_gram_flow() -> Objective:
        try:
            shared = {name: settings[name] for name in ("window", "similarity", "boundary")}
        except KeyError as error:
            raise ValueError(f"the cache's settings.json does not say its {error}. Make it with lgf extract") from error
        chosen = alignment.lgf
        options = shared | {
            "temperature": chosen.temperature, "divergence": chosen.divergence, "backend": alignment.backend
        }  # fmt: skip
        LocalGramFlowKLLoss(**options)  # checks them here rather than in the first step
        if chosen.fusion == "features":
            return FusedFeatures(features, weights, chosen.direction, options)
        form = LocalGramFlow if chosen.fusion == "logits" else SeparateProjectors
        return form(*_pair(("teacher_forward", "teacher_backward"), alignment.k), chosen.direction, options)

    def token_relation() -> Objective:
        chosen = alignment.relation
        criterion = TokenRelationLoss(chosen.form, chosen.tau, chosen.margin, backend=alignment.backend)
        return TokenRelation(features, weights, criterion)

    makers: dict[str, Callable[[], Objective | None]] = {
        "none": lambda: None,
        "lgf": local_gram_flow,
        "features": lambda: FeatureDistance(features, weights),
        "repa": lambda: Repa(features, weights),
        "relation": token_relation,
        "mask": MaskSupervision,
    }
    try:
        return makers[alignment.loss]()
    except (TypeError, ValueError) as error:
        raise TrainerError(f"alignment: {error}") from error


def _pair(names: Sequence[str], k: float) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The teachers and their weights, without those of weight 0."""
    if len(names) == 1:
        return tuple(names), (1.0,)
    kept = [(name, weight) for name, weight in zip(names, (k, 1 - k), strict=True) if weight > 0]
    return tuple(name for name, _ in kept), tuple(weight for _, weight in kept)
