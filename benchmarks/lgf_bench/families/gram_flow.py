"""The cases that are measured, named after what they are."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import lgf_kernels as lgf

OPERATORS = ("lgf_kl", "local_gram_flow", "token_relation")
LATENT = (1, 13, 30, 45, 256)


@dataclass(frozen=True)
class Case:
    """One operator at one size. `shape` is the student's; teachers have `teacher_channels` each."""

    operator: str
    shape: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    about: str
    window: int = 7
    #: Of token relations: a name that `lgf.TokenRelationLoss` knows.
    form: str = "moalign"
    #: The teachers come as float16 logits, as a training run on precomputed teachers has them.
    cached: bool = False
    #: Takes minutes on a CPU, where it runs only if it is asked for by its name.
    large: bool = False
    dtype: str = "float32"
    device: str = "cpu"

    def inputs(self) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Student (a leaf that requires grad), teachers, and the upstream gradient of an output that is no scalar: random
        and the same every time."""
        generator = torch.Generator(self.device).manual_seed(0)  # a CPU takes a second for each large tensor

        def features(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=self.device).to(getattr(torch, self.dtype))

        student, teachers = features(*self.shape), [features(*self.shape[:-1], C) for C in self.teacher_channels]
        if self.cached:
            teachers = [lgf.local_gram_flow(teacher, window=self.window).half() for teacher in teachers]
        B, T, *rest = self.shape
        upstream = features(B, T - 1, *rest[:2], self.window**2).float() if self.operator == "local_gram_flow" else None
        return student.requires_grad_(), teachers, upstream

    def call(self) -> Callable[..., Tensor]:
        """The public function measured, as `call(student, teachers, backend=..., reduction=...)`."""
        if self.operator == "token_relation":
            loss = lgf.TokenRelationLoss(self.form)
            weight = loss.pair_weight(self.shape[1], self.device)

            def relation(student: Tensor, teachers: list[Tensor], **options) -> Tensor:
                return lgf.token_relation_loss(student, teachers[0], pair_weight=weight, margin=loss.margin, **options)

            return relation
        if self.operator == "local_gram_flow":
            return lambda student, teachers, **options: lgf.local_gram_flow(student, window=self.window, **options)
        function = lgf.lgf_kl_loss_from_logits if self.cached else lgf.lgf_kl_loss
        return lambda student, teachers, **options: function(student, teachers, window=self.window, **options)

    def smallest(self) -> "Case":
        """The same operator on so little that arithmetic takes no time: what is left is the overhead of a call."""
        shape = (1, 2, *[min(n, 8) for n in self.shape[2:-1]], 16)
        return replace(self, shape=shape, teacher_channels=tuple(16 for _ in self.teacher_channels))


def _lgf(shape: tuple[int, ...], about: str, **options) -> Case:
    return Case("lgf_kl", shape, (shape[-1], shape[-1]), f"LGF-KL, {about}", **options)


def _relation(form: str, tokens: int, channels: int, about: str, **options) -> Case:
    return Case("token_relation", (1, 24, tokens, channels), (channels,), about, form=form, **options)


CASES = {
    "cogvideox-latent": _lgf(LATENT, "CogVideoX's latent grid, forward and backward SAM2 teacher"),
    "cogvideox-latent-cached": _lgf(LATENT, "the same from the teachers' cached logits", cached=True),
    "cogvideox-latent-logits": Case("local_gram_flow", LATENT, (), "the logits of one feature map and their gradient"),
    "cogvideox-latent-batch4": _lgf((4, *LATENT[1:]), "CogVideoX's latent grid, 4 videos", large=True),
    "sam2": _lgf((1, 49, 64, 64, 256), "every frame on the teacher's own grid", large=True),
    "latent-to-frame": _lgf((1, 49, 30, 45, 256), "latents interpolated to every frame", large=True),
    "cogvideox1.5": _lgf((1, 21, 48, 85, 256), "CogVideoX 1.5's grid", large=True),
    **{
        f"window-{K}": _lgf(LATENT, f"CogVideoX's latent grid, {K} x {K} window", window=K, large=K > 7)
        for K in (3, 5, 9, 11, 13, 15)
    },
    "videorepa-24x150": _relation("videorepa", 150, 768, "VideoREPA on 24 frames of 10 x 15 tokens"),
    "moalign-24x150": _relation("moalign", 150, 64, "MoAlign on 24 frames of 10 x 15 tokens"),
    "videorepa-24x1350": _relation("videorepa", 1350, 768, "VideoREPA at full resolution, 30 x 45 tokens", large=True),
    "moalign-24x1350": _relation("moalign", 1350, 64, "MoAlign at full resolution, 30 x 45 tokens", large=True),
}


def own_case(operator: str, shape: tuple[int, ...], window: int = 7) -> tuple[str, Case]:
    """Name and case of an operator on a shape that the user gives; its teachers are like the student."""
    teachers = {"lgf_kl": 2, "local_gram_flow": 0, "token_relation": 1}[operator]
    size = "x".join(map(str, shape)) + (f"-k{window}" if window != 7 else "")
    return f"{operator}-{size}", Case(operator, shape, (shape[-1],) * teachers, "a shape of yours", window)


def why_not_shape(operator: str, shape: tuple[int, ...]) -> str | None:
    """None if the operator takes a student of this shape, else what it takes."""
    relation = operator == "token_relation"
    wanted = "B,F,N,C (videos, frames, tokens of a frame, channels)" if relation else "B,T,H,W,C with T at least 2"
    right = len(shape) == (4 if relation else 5) and min(shape) >= 1 and (relation or shape[1] >= 2)
    return None if right else f"{operator} takes {wanted}"
