"""The losses as `nn.Module`s, for codebases that configure their losses once and call them often."""

from collections.abc import Sequence

from torch import Tensor, nn

from . import checks, functional
from .backends import known
from .options import REDUCTIONS


class LocalGramFlowKLLoss(nn.Module):
    """`lgf_kl_loss` with its options fixed: `loss(student, teachers, token_weight=None)`.

    Args:
        window, temperature, similarity, boundary, divergence, direction, teacher_weights, reduction, backend: as in
            `lgf_kernels.lgf_kl_loss`, and checked here rather than in the first step of a training run.

    Shapes: student (B, T, H, W, C); teachers one or several (B, T, H, W, any); token_weight (B, T-1, H, W).

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: SAM2VideoX (Structure From Tracking), sections 4.2 to 4.4.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.LocalGramFlowKLLoss(teacher_weights=(0.5, 0.5))
        >>> student = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> forward, backward = torch.randn(2, 1, 5, 8, 12, 64)
        >>> criterion(student, [forward, backward]).backward()
    """

    def __init__(
        self,
        window: int = 7,
        temperature: float = 0.1,
        similarity: str = "cosine",
        boundary: str = "exclude",
        divergence: str = "kl",
        direction: str = "forward",
        teacher_weights: Sequence[float] | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__()
        self.options = dict(
            window=window,
            temperature=temperature,
            similarity=similarity,
            boundary=boundary,
            divergence=divergence,
            direction=direction,
            reduction=reduction,
        )
        checks.lgf_options("LocalGramFlowKLLoss", **self.options)
        self.teacher_weights = checks.teacher_weights("LocalGramFlowKLLoss", teacher_weights, count=None)
        self.backend = backend and known(backend, "LocalGramFlowKLLoss")

    def forward(
        self, student: Tensor, teachers: Tensor | Sequence[Tensor], token_weight: Tensor | None = None
    ) -> Tensor:
        return functional.lgf_kl_loss(
            student,
            teachers,
            teacher_weights=self.teacher_weights,
            token_weight=token_weight,
            backend=self.backend,
            **self.options,
        )

    def extra_repr(self) -> str:
        shown = {**self.options, "teacher_weights": self.teacher_weights, "backend": self.backend}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


#: The margin each form was published with.
MARGINS = {"moalign": 0.0, "videorepa": 0.1, "videorepa-spatial": 0.1, "videorepa-temporal": 0.1}


class TokenRelationLoss(nn.Module):
    """`token_relation_loss` in one of its published forms: `loss(student, teacher)`.

    ====================  ======  ==================================================
    form                  margin  pair weights
    ====================  ======  ==================================================
    "moalign"             0       `moalign_pair_weight(F, tau)`
    "videorepa"           0.1     `videorepa_pair_weight(F, "all")`
    "videorepa-spatial"   0.1     `videorepa_pair_weight(F, "spatial")`
    "videorepa-temporal"  0.1     `videorepa_pair_weight(F, "temporal")`
    ====================  ======  ==================================================

    Args:
        form: one of the above; default "moalign".
        tau: in frames, for "moalign"; the paper uses 10.
        margin: >= 0, or None (default) for the form's own.
        reduction, backend: as in `lgf_kernels.token_relation_loss`.

    Shapes: student (B, F, H, W, C) or (B, F, N, C); teacher the same but for the channels.

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: VideoREPA, Token Relation Distillation; MoAlign, equations 5 to 8.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.TokenRelationLoss("videorepa")
        >>> student = torch.randn(1, 6, 20, 32, requires_grad=True)
        >>> criterion(student, torch.randn(1, 6, 20, 48)).backward()
    """

    def __init__(
        self,
        form: str = "moalign",
        tau: float = 10.0,
        margin: float | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__()
        here = "TokenRelationLoss"
        self.form = checks.choice(here, "form", form, tuple(MARGINS))
        self.tau = checks.number(here, "tau", tau, above=0.0)
        self.margin = MARGINS[form] if margin is None else checks.number(here, "margin", margin, minimum=0.0)
        self.reduction = checks.choice(here, "reduction", reduction, REDUCTIONS)
        self.backend = backend and known(backend, here)

    def pair_weight(self, num_frames: int, device=None) -> Tensor:
        """The form's frame-pair weights, (F, F) float32."""
        if self.form == "moalign":
            return functional.moalign_pair_weight(num_frames, self.tau, device=device)
        relations = self.form.partition("-")[2] or "all"
        return functional.videorepa_pair_weight(num_frames, relations, device=device)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        checks.relation_features("TokenRelationLoss", student)
        return functional.token_relation_loss(
            student,
            teacher,
            pair_weight=self.pair_weight(student.shape[1], student.device),
            margin=self.margin,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"form={self.form!r}, tau={self.tau}, margin={self.margin}, reduction={self.reduction!r}, backend={self.backend!r}"
