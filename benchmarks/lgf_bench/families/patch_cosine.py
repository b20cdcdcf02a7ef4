"""Patch cosine: its cases, what one would run instead in plain PyTorch, and its sweep."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lgf_kernels as lgf

from .base import Case, Loss, Provider, Sweep, Tensors, Tuned, compiled

#: Elements of a part of the oracle's tokens.
PART = 2**24


@dataclass(frozen=True)
class PatchCosine(Case):
    """A student (B, F, H, W, C), and teachers whose channels together are C, in a form that `lgf.PatchCosineLoss` knows."""

    operator = "patch_cosine"
    differentiable = ("student",)
    shapes = "B,F,H,W,C (videos, frames, rows, columns, channels)"
    least, small = (1, 1, 1, 1, 1), (1, 2, 8, 8, 16)

    teacher_channels: tuple[int, ...] | None = None  # one teacher with those of the student
    form: str = "repa"

    @cached_property
    def module(self) -> lgf.PatchCosineLoss:
        return lgf.PatchCosineLoss(self.form)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each teacher; of a smaller case one teacher has all."""
        given = self.teacher_channels
        return given if given and sum(given) == self.shape[-1] else (self.shape[-1],)

    @property
    def copy_bytes(self) -> float:
        """Bytes of the student in float32."""
        return 4.0 * torch.Size(self.shape).numel()

    @property
    def weighted(self) -> bool:
        """Whether the frames of the teachers are mixed."""
        return self.module.form == "crepa"

    def layout(self) -> Tensors:
        frames = self.shape[1]
        teachers = [self.empty(*self.shape[:-1], C) for C in self.channels]
        tensors = {"student": self.empty(*self.shape), "teachers": teachers}
        return tensors | ({"frame_weight": self.empty(frames, frames, dtype=torch.float32)} if self.weighted else {})

    def tensors(self) -> Tensors:
        weight = {"frame_weight": lgf.crepa_frame_weight(self.shape[1], device=self.device)} if self.weighted else {}
        return super().tensors() | weight

    def call(self, *, backend: str | None = None, **tensors) -> Tensor:
        return lgf.patch_cosine_loss(**tensors, backend=backend)

    def options(self) -> dict[str, object]:
        return {"form": self.form}

    def flop(self) -> tuple[int, int]:
        """Count what the forward does for value and gradient: dots and norms, folded frames, and the gradient's two terms."""
        elements, frames = torch.Size(self.shape).numel(), self.shape[1]
        pairs = int((lgf.crepa_frame_weight(frames) != 0).sum()) if self.weighted else 0
        return 6 * elements + 2 * pairs * (elements // frames), 3 * elements

    def oracle(self, tensors: Tensors) -> Iterator[Tensor]:
        """Yield the share of some rows of tokens at a time, in all frames."""
        B, frames, H, W, C = self.shape
        step = max(1, PART // (B * frames * W * C))
        for y in range(0, H, step):
            student, *teachers = (f[:, :, y : y + step] for f in (tensors["student"], *tensors["teachers"]))
            part = tensors | {"student": student, "teachers": teachers}
            yield self.call(backend="reference", **part) * (student.shape[2] / H)


def _grid(frames: int, channels: tuple[int, ...], form: str) -> PatchCosine:
    about = {"repa": "REPA" if len(channels) == 1 else "Align4Gen, two teachers", "crepa": "CREPA"}[form]
    shape = (1, frames, 30, 45, sum(channels))
    return PatchCosine(
        shape, channels, form, about=f"{about} on {frames} frames of 30 x 45 tokens", large=frames > 13
    )  # fmt: skip


OPERATORS = (PatchCosine,)
CASES = {
    f"{form}-{frames}x30x45-{'+'.join(map(str, channels))}": _grid(frames, channels, form)
    for form, frames, channels in itertools.product(("repa", "crepa"), (13, 49), ((1024,), (1024, 256)))
}

TUNED = (Tuned("TOKENS", CASES["repa-13x30x45-1024+256"]),)


def sweeps(gpu: bool) -> dict[str, Sweep]:
    """Return the sweep over the channels."""
    frames, H, W = (13, 30, 45) if gpu else (5, 16, 24)
    cases = {C: PatchCosine((1, frames, H, W, C)) for C in (128, 256, 512, 1024, 2048)}
    return {"patches": Sweep("C", "patch cosine, channels", cases)}


def eager(case: PatchCosine) -> Loss:
    """Return what one would write: normalise, concatenate, mix the frames, cosine."""

    def loss(student: Tensor, teachers: list[Tensor], frame_weight: Tensor | None = None) -> Tensor:
        y = torch.cat([F.normalize(f.float(), dim=-1, eps=1e-6) for f in teachers], -1) / len(teachers) ** 0.5
        h = F.normalize(student.float(), dim=-1, eps=1e-6)
        if frame_weight is None:
            return (1 - (h * y).sum(-1)).mean()
        y = torch.einsum("fk,bk...c->bf...c", frame_weight, y)
        return (frame_weight.sum(1).view(-1, 1, 1) - (h * y).sum(-1)).mean()

    return loss


#: The numbers of copies are measured ones (the table's peak memory), rounded up.
BASELINES = {
    "eager": Provider(
        "plain PyTorch: normalised, concatenated copies of the features", eager, lambda case: 6 * case.copy_bytes
    ),
    "compile": Provider(
        "torch.compile of eager", partial(compiled, make=eager), lambda case: 2 * case.copy_bytes, compiles=True
    ),
}
