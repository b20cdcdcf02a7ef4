"""Base of the alignment terms: targets for the projected features."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from ..data.cache import must_hold
from ..projector import FACTOR, Projector, RelationHead, TokenMlp
from ..runtime import recipe
from ..runtime.errors import TrainerError
from ..runtime.registry import ByName
from ..runtime.settings import flatten, from_settings, is_group

Tensors = dict[str, Tensor]
Shapes = dict[str, torch.Size]


class Objective(ByName, ABC, kind="objectives"):
    """An alignment term: a function of what the projector puts out and of tensors of the window.

    A kind is a subclass in a file of its own, with a `name` that `alignment.loss` may have, and a dataclass `Options` that
    `alignment.options` is checked against. By default it reads features of the cache, `alignment.features`.

    Args:
        alignment: of the recipe.
        settings: of the cache.
        options: of the kind.

    Attributes:
        tensors: names of the tensors of a window that it reads.
        weights: of those, one each.
    """

    def __init__(self, alignment: recipe.Alignment, settings: dict[str, Any], options: Any):
        self.alignment, self.settings, self.options = alignment, settings, options
        self.concat = alignment.combine == "concat"
        self.tensors, self.weights = self.read_tensors()
        reads_features = any(name.startswith("features_") for name in self.tensors)
        if not reads_features and alignment.features != recipe.Alignment.features:
            raise ValueError(
                f"features names {', '.join(alignment.features)}, and this loss reads {', '.join(self.tensors)} of the cache. "
                "Leave features out, or choose a loss that reads them, such as relation or lgf with lgf.fusion features"
            )

    def read_tensors(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return the names of the tensors of a window that it reads, and their weights."""
        names = [f"features_{name}" for name in self.alignment.features]
        return (tuple(names), (1.0,) * len(names)) if self.concat else weighted(names, self.alignment)

    def frames(self, shapes: Shapes) -> int:
        """Return the frames that the projector must put out, from the shapes of the tensors of a window."""
        return shapes[self.tensors[0]][0]

    def channels(self, shapes: Shapes) -> int | None:
        """Return the channels that the projector must put out; None: those of the recipe."""
        return None

    def make_projector(self, options: recipe.Projector, in_channels: int, shapes: Shapes) -> nn.Module:
        """Return a projector for features of `in_channels` channels."""
        widths = (*options.widths[:-1], self.channels(shapes) or options.widths[-1])
        if options.form == "repa":
            return TokenMlp(in_channels, widths)
        if options.form != "sam2videox":
            layers = "conv" if options.form == "moalign" else "mlp"
            return RelationHead(in_channels, widths, layers, options.reduction)
        return Projector(
            in_channels, options.hidden, widths, self.frames(shapes), options.groups,
            interpolation=options.interpolation, last=options.last, stem=options.stem,
        )  # fmt: skip

    def check(self, shapes: Shapes, grid: tuple[int, int, int], cache: str) -> None:
        """Refuse windows that it cannot be computed on."""
        for name in self.tensors:
            way_out = "Extract again with it (lgf extract --help), or choose another alignment"
            must_hold(shapes, name, cache, "this recipe's alignment", way_out)
            shape, given = tuple(shapes[name]), name.startswith("features_")
            if given and len(shape) != 4:
                raise TrainerError(
                    f"{name} of {cache} has the shape {shape}: features are (frames, rows, columns, channels)"
                )
            if not all(has <= own if given else has == own for has, own in zip(shape[1:3], grid[1:], strict=True)):
                way_out = "average them down to at most that" if given else "extract again with this model"
                raise TrainerError(
                    f"{name} of {cache} is on a grid of {shape[1]} x {shape[2]} tokens, and this model's is "
                    f"{grid[1]} x {grid[2]}: {way_out}"
                )
        compared = {name: shapes[name][0] for name in self.tensors}
        if len(set(compared.values())) > 1:
            raise TrainerError(f"{cache} holds {compared} frames, and one projector puts out one number of them")
        grids = {name: tuple(shapes[name][:3]) for name in self.tensors}
        if self.concat and len(set(grids.values())) > 1:
            raise TrainerError(
                f"{cache} holds {grids}, and alignment.combine concat joins features on one grid. Bring them to one, "
                "or set alignment.combine to sum"
            )

    def check_head(self, options: recipe.Projector, shapes: Shapes, grid: tuple[int, int, int], cache: str) -> None:
        """Refuse a head whose output is not on the grid of what it is compared with."""
        if options.form == "sam2videox":
            made, needed = FACTOR * (grid[0] - 1) + 1, self.frames(shapes)
            if options.interpolation == "factor" and needed not in (grid[0], made):
                raise TrainerError(
                    f"projector.interpolation factor makes {made} frames of {grid[0]}, and {self.tensors[0]} of {cache} has "
                    f"{needed}: extract with all frames or with --time latent, or set projector.interpolation to frames"
                )
            return
        if options.form == "repa":
            if self.frames(shapes) != grid[0]:
                raise TrainerError(
                    f"projector.form repa puts out the {grid[0]} frames of the latents, and {self.tensors[0]} of {cache} has "
                    f"{self.frames(shapes)}: extract with --time latent, or set projector.form to sam2videox, which interpolates"
                )
            return
        frames, rows, columns = 2 * (grid[0] - 1), grid[1] // options.reduction, grid[2] // options.reduction
        for name in self.tensors:
            if tuple(shapes[name][:3]) != (frames, rows, columns) or not name.startswith("features_"):
                raise TrainerError(
                    f"projector.form {options.form} puts out 2 x ({grid[0]} - 1) = {frames} frames of {rows} x {columns} tokens "
                    f"from {grid[0]} x {grid[1]} x {grid[2]}, and {name} of {cache} is {' x '.join(map(str, shapes[name][:3]))}: "
                    "extract with --teachers videomae, or set projector.form to sam2videox, which interpolates and averages"
                )

    def teachers(self, targets: Tensors) -> list[tuple[Tensor, float]]:
        """Return (features, weight) of each teacher; of all of them together where they are to be concatenated.

        Concatenated, every teacher's vectors have length 1, so that none outweighs another (our reading).
        """
        features = [targets[name] for name in self.tensors]
        if self.concat:
            return [(torch.cat([normalize(tensor.float(), dim=-1) for tensor in features], dim=-1), 1.0)]
        return list(zip(features, self.weights, strict=True))

    @abstractmethod
    def __call__(self, projected: Any, targets: Tensors) -> Tensor:
        """Return the loss, a scalar, of what the projector puts out."""


def make_objective(alignment: recipe.Alignment, settings: dict[str, Any]) -> Objective | None:
    """Return the objective of a recipe, for a cache made with `settings`; None for no alignment.

    Raises:
        TrainerError: there is no such loss, or it cannot have these options.
    """
    if alignment.loss == "none":
        return None
    kind = Objective.find(alignment.loss)
    # The first kinds have groups of their own in recipes, which are older than `options`.
    group = getattr(alignment, alignment.loss, None)
    base = group if is_group(group) else None
    options = from_settings(kind.Options, alignment.options, "alignment.options", base=base)
    try:
        return kind(alignment, settings, options)
    except (TypeError, ValueError) as error:
        if isinstance(error, TrainerError):
            raise
        raise TrainerError(f"alignment: {error}") from error


def unread_options(alignment: recipe.Alignment) -> list[str]:
    """Return the options of a recipe that were set for a loss other than its own, which reads none of them."""
    usual = recipe.Alignment()
    groups = [entry.name for entry in dataclasses.fields(usual) if is_group(getattr(usual, entry.name))]
    return [
        f"alignment.{group}.{name}"
        for group in groups
        if group != alignment.loss
        for name, value in flatten(getattr(alignment, group)).items()
        if value != getattr(getattr(usual, group), name)
    ]


def weighted(names: Sequence[str], alignment: recipe.Alignment) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the teachers and their weights, without those of weight 0: `alignment.weights`, or k and 1 - k for two."""
    if len(names) == 1:
        return tuple(names), (1.0,)
    weights = alignment.weights or (alignment.k, 1 - alignment.k)
    kept = [(name, weight) for name, weight in zip(names, weights, strict=True) if weight > 0]
    return tuple(name for name, _ in kept), tuple(weight for _, weight in kept)


def on_grid_of(features: Tensor, teacher: Tensor) -> Tensor:
    """Average features (B, T, H, W, C) over the cells of the teacher's rows and columns (our reading)."""
    size = teacher.shape[2:4]
    if features.shape[2:4] == size:
        return features
    planes = features.permute(0, 1, 4, 2, 3).flatten(0, 1)
    pooled = adaptive_avg_pool2d(planes, size).unflatten(0, features.shape[:2])
    return pooled.permute(0, 1, 3, 4, 2).contiguous()
