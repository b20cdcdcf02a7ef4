"""The cases that are measured, named after what they are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import lgf_kernels as lgf


@dataclass(frozen=True)
class Case:
    """One operator at one size. `shape` is the student's; teachers have `teacher_channels` each."""

    operator: str
    shape: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    about: str
    dtype: str = "float32"
    #: The teachers come as float16 logits, as a training run on precomputed teachers has them.
    cached: bool = False

    def inputs(self) -> tuple[Tensor, list[Tensor]]:
        """Student (a leaf that requires grad) and teachers, random and the same every time."""
        generator = torch.Generator().manual_seed(0)

        def features(channels: int) -> Tensor:
            return torch.randn(*self.shape[:-1], channels, generator=generator).to(getattr(torch, self.dtype))

        student, teachers = features(self.shape[-1]), [features(C) for C in self.teacher_channels]
        if self.cached:
            teachers = [lgf.local_gram_flow(teacher).half() for teacher in teachers]
        return student.requires_grad_(), teachers

    def loss(self) -> Callable[..., Tensor]:
        """The public function measured, as `loss(student, teachers, backend=...)`."""
        if self.operator == "lgf_kl":
            return lgf.lgf_kl_loss_from_logits if self.cached else lgf.lgf_kl_loss
        weight = lgf.moalign_pair_weight(self.shape[1])

        def relation(student: Tensor, teachers: list[Tensor], backend: str | None = None) -> Tensor:
            return lgf.token_relation_loss(student, teachers[0], pair_weight=weight, backend=backend)

        return relation


CASES = {
    "cogvideox-latent": Case(
        "lgf_kl",
        (1, 13, 30, 45, 256),
        (256, 256),
        "LGF-KL on CogVideoX's latent grid, forward and backward SAM2 teacher",
    ),
    "cogvideox-latent-cached": Case(
        "lgf_kl", (1, 13, 30, 45, 256), (256, 256), "the same from the teachers' cached logits", cached=True
    ),
    "moalign-24x150": Case(
        "token_relation", (1, 24, 150, 256), (768,), "MoAlign on 24 frames of 10 x 15 tokens, the grid of the papers"
    ),
    "moalign-24x600": Case("token_relation", (1, 24, 600, 256), (768,), "MoAlign on 24 frames of 20 x 30 tokens"),
}
