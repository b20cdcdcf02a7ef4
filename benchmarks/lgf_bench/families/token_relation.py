"""Token relations: their cases, what one would run instead in plain PyTorch, and their sweep."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lgf_kernels as lgf

from .base import Case, Loss, Provider, Sweep, Tensors, Tuned, compiled, eager

#: Elements of a matrix of relations that the oracle makes at a time.
MATRIX = 2**24


@dataclass(frozen=True)
class TokenRelation(Case):
    """Features (B, F, N, C) of a student and a teacher, in a form that `lgf.TokenRelationLoss` knows.

    The gradient jumps where a difference passes 0 or the margin. Of the n * n pairs, rounding puts a few on the other side,
    with any provider, which changes the gradient by a few thousandths.
    """

    operator = "token_relation"
    differentiable = ("student",)
    shapes = "B,F,N,C (videos, frames, tokens of a frame, channels)"
    least, small = (1, 1, 1, 1), (1, 2, 8, 16)
    gradient_tolerance = 1e-2

    teacher_channels: int | None = None  # those of the student
    form: str = "moalign"

    @cached_property
    def module(self) -> lgf.TokenRelationLoss:
        return lgf.TokenRelationLoss(self.form)

    @property
    def channels(self) -> int:
        """Channels of student and teacher together."""
        return self.shape[-1] + (self.teacher_channels or self.shape[-1])

    @property
    def matrix_bytes(self) -> float:
        """Bytes of the n x n relations in float32."""
        B, frames, N, _ = self.shape
        return 4.0 * B * (frames * N) ** 2

    def layout(self) -> Tensors:
        frames = self.shape[1]
        return {
            "student": self.empty(*self.shape),
            "teacher": self.empty(*self.shape[:-1], self.channels - self.shape[-1]),
            "pair_weight": self.empty(frames, frames, dtype=torch.float32),
        }

    def tensors(self) -> Tensors:
        return super().tensors() | {"pair_weight": self.module.pair_weight(self.shape[1], self.device)}

    def call(self, *, backend: str | None = None, **tensors) -> Tensor:
        options = {name: getattr(self.module, name) for name in ("margin", "distance", "negatives")}
        return lgf.token_relation_loss(**tensors, **options, backend=backend)

    def options(self) -> dict[str, object]:
        return {"form": self.form}

    def flop(self) -> tuple[int, int]:
        """Count half of both symmetric Grams, diagonal included, and coefficients by features, for pairs with a weight.

        Squares without clamping: products of channels, if they are fewer.
        """
        B, frames, N, C = self.shape
        weighted = self.module.pair_weight(frames) != 0
        pairs = int(weighted.sum()) * N * N
        upper = (pairs + int(weighted.diagonal().sum()) * N) // 2
        by_pairs = 2 * B * upper * self.channels, 2 * B * pairs * C
        if (self.module.distance, self.module.negatives) != ("l2", "keep"):
            return by_pairs
        both, n = self.channels, frames * N
        return min(by_pairs, (B * n * both * (both + 1), 2 * B * n * C * both), key=sum)

    def oracle(self, tensors: Tensors) -> Iterator[Tensor]:
        """Yield the part of the pairs of frames of two groups at a time, with all other weights 0."""
        B, frames, N, _ = self.shape
        student, teacher, weight = (tensors[name] for name in ("student", "teacher", "pair_weight"))
        width = max(1, int((MATRIX / B) ** 0.5 / N / 2))
        groups = [list(range(start, min(start + width, frames))) for start in range(0, frames, width)]
        for i, one in enumerate(groups):
            for other in groups[i:]:
                chosen = one if one is other else one + other
                c = weight[chosen][:, chosen].clone()
                if one is not other:
                    c[: len(one), : len(one)] = c[len(one) :, len(one) :] = 0
                part = {"student": student[:, chosen], "teacher": teacher[:, chosen], "pair_weight": c}
                yield self.call(backend="reference", **part)


def _videos(form: str, tokens: int, channels: int, about: str, **options) -> TokenRelation:
    return TokenRelation((1, 24, tokens, channels), form=form, about=about, **options)


OPERATORS = (TokenRelation,)
CASES = {
    "videorepa-24x150": _videos("videorepa", 150, 768, "VideoREPA on 24 frames of 10 x 15 tokens"),
    "gram-24x1350": _videos("gram", 1350, 64, "DINOv3's Gram loss on 24 frames of 30 x 45 tokens"),
    "gram-clamped-24x1350": _videos("gram-clamped", 1350, 64, "the same with negative similarities clamped"),
    "moalign-24x150": _videos("moalign", 150, 64, "MoAlign on 24 frames of 10 x 15 tokens"),
    "videorepa-24x1350": _videos("videorepa", 1350, 768, "VideoREPA at full resolution, 30 x 45 tokens", large=True),
    "videorepa-24x1350-256": _videos("videorepa", 1350, 256, "the same of 256 channels", large=True),
    "moalign-24x1350": _videos("moalign", 1350, 64, "MoAlign at full resolution, 30 x 45 tokens", large=True),
}

TUNED = (Tuned("DISTANCES", CASES["videorepa-24x150"]), Tuned("PRODUCTS", CASES["videorepa-24x150"]))


def sweeps(gpu: bool) -> dict[str, Sweep]:
    """Return the sweep over the tokens of a video."""
    frames, N, C = (24, 150, 256) if gpu else (8, 100, 64)
    cases = {frames * N * s: TokenRelation((1, frames, N * s, C)) for s in (1, 2, 3, 4, 6)}
    return {"relations": Sweep("n", "MoAlign, tokens of a video", cases)}


def chunked(case: TokenRelation) -> Loss:
    """Take a frame's rows at a time, recomputed in backward: what one writes when n x n does not fit."""

    def rows(z: Tensor, m: Tensor, c: Tensor, f: int) -> Tensor:
        N = z.shape[1] // len(c)
        one = slice(f * N, (f + 1) * N)
        s_z, s_m = z[:, one] @ z.mT, m[:, one] @ m.mT
        if case.module.negatives == "clamp":
            s_z, s_m = s_z.relu(), s_m.relu()
        distance = torch.relu((s_z - s_m).abs() - case.module.margin) ** (1 if case.module.distance == "l1" else 2)
        return (c[f] * distance.unflatten(-1, (len(c), N)).mean((1, 3))).sum(-1)

    def loss(student: Tensor, teacher: Tensor, pair_weight: Tensor) -> Tensor:
        z, m = (F.normalize(x.flatten(1, -2).float(), dim=-1, eps=1e-6) for x in (student, teacher))
        frames = range(len(pair_weight))
        return sum(checkpoint(rows, z, m, pair_weight, f, use_reentrant=False) for f in frames).mean()

    return loss


#: The numbers of matrices are measured ones (the table's peak memory), rounded up.
BASELINES = {
    "eager": Provider(
        "plain PyTorch: the n x n matrices (the library's oracle)", eager, lambda case: 4 * case.matrix_bytes
    ),
    "compile": Provider("torch.compile of eager", compiled, lambda case: 3 * case.matrix_bytes, compiles=True),
    "chunked": Provider("eager, a frame's rows at a time, with checkpointing", chunked),
}
