"""Patch cosine, as functions and a module, with the specification and the checks of all arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import checks
from ..core.numerics import accumulate_dtype
from ..core.registry import call_of, checked_backend, resolve
from . import operators
from .folding import as_grid, shares_of


def patch_cosine_loss(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    *,
    teacher_weights: Sequence[float] | None = None,
    frame_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Patch cosine loss: how far every token's features point from those of its teachers.

    The teachers are normalised each, then concatenated over the channels, which the student has in the same order::

        y = concat_m( sqrt(w_m / sum w) F_m / max(||F_m||, 1e-6) ),   h^ = h / max(||h||, 1e-6)
        l[n] = 1 - < h^_n, y_n >
        loss = sum_n a_n l_n / sum_n a_n                                 a = token_weight, 1 if None

    y has length 1 if no teacher's vector is 0; a zero vector contributes nothing. This is not the sum of a loss for each
    teacher: the student's length is shared. With `frame_weight` c, each token is compared with those at its place in
    several frames of the teachers::

        l[f, n] = sum_k c[f, k] (1 - < h^_{f,n}, y_{k,n} >)

    y and its weighted sums are never stored. The gradient flows to the student only, and once; the forward computes it if
    the student requires grad, and keeps it for the backward in the student's type, with 4 bytes (8 in float64) a token:
    about 2 bytes an element in half precision. NaN or inf in features gives NaN, but not those of a teacher's frame where its
    weight is 0, nor in the loss, which is all that this leaves alone, those of a student's frame whose weights are all 0.

    Args:
        student: (..., C) float32, bfloat16, float16 or float64, any shape before the channels; (B, F, ..., C), videos and
            frames, with `frame_weight`. All arithmetic accumulates in float32 (float64 for a float64 student), under
            autocast too. Used as it is if the last dimension is contiguous, whatever the other strides; copied otherwise.
            More than four dimensions before the channels are merged, with a copy where strides forbid it.
        teachers: one tensor or a sequence of tensors, (..., C_m) with sum C_m = C, of any of those types, without gradient;
            (B, K, ..., C_m) with `frame_weight`.
        teacher_weights: w, floats >= 0, not all 0, one for each teacher. None (default): equal.
        frame_weight: c, (F, K), real, >= 0, on the student's device, without gradient; usually from `crepa_frame_weight`. A
            pair of frames of weight 0 is no part of the loss. Negative values raise on the CPU and are not checked on other
            devices, where reading them would make the host wait.
        token_weight: a, (...), one for each token of the student, of any real type, bool masks included, >= 0, without
            gradient. With "mean" only their ratios count, whatever their size. All zeros give 0/0 = NaN with "mean", as torch's
            own weighted means do: use "sum" and divide by `token_weight.sum().clamp(min=1)` where that can happen. Negative
            values as in `frame_weight`.
        reduction: "mean" (default), "sum" (`sum_n a_n l_n`) or "none" (`a_n l_n`).
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        A scalar, or (...) for "none", in float32 (float64 for a float64 student). Rounding may leave the distance of equal
        directions below 0, by 1e-7.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: Align4Gen, equation 13 (REPA for one teacher); CREPA. Weights of teachers are ours. CREPA adds up the frames'
    negative similarities instead of averaging distances: its term is this loss's mean times F, less a constant.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> student = torch.randn(1, 13, 6, 9, 96, requires_grad=True)
        >>> dino, sam2 = torch.randn(1, 13, 6, 9, 64), torch.randn(1, 13, 6, 9, 32)
        >>> lgf.patch_cosine_loss(student, [dino, sam2]).backward()
        >>> lgf.patch_cosine_loss(student, [dino, sam2], frame_weight=lgf.crepa_frame_weight(13)).backward()
    """
    here = "patch_cosine_loss"
    teachers, shares = checked_arguments(
        here, student, teachers, teacher_weights, frame_weight, token_weight, reduction
    )
    lead, frames = student.shape[:-1], frame_weight is not None
    if frames:
        frame_weight = frame_weight.to(accumulate_dtype(student))
    if token_weight is not None:
        token_weight = as_grid(token_weight.unsqueeze(-1), frames).squeeze(-1)
    student, *teachers = (as_grid(tensor, frames) for tensor in (student, *teachers))
    name = resolve(call_of("patch_cosine", student, teachers=len(teachers), frames=frames), backend, here)
    loss = operators.patch_cosine(student, teachers, shares, frame_weight, token_weight, reduction, name)
    return loss.reshape(lead) if reduction == "none" else loss


def checked_arguments(
    function: str,
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    teacher_weights: Sequence[float] | None = None,
    frame_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[list[Tensor], list[float]]:
    """Check the arguments of the loss but its backend. Return the teachers and their shares."""
    checks.choice(function, "reduction", reduction, checks.REDUCTIONS)
    teachers = _checked_features(function, student, teachers, frame_weight is not None)
    shares = shares_of(_checked_weights(function, teacher_weights, len(teachers)))
    if frame_weight is not None:
        shape = (student.shape[1], teachers[0].shape[1])
        checks.weight_tensor(
            function, "frame_weight", frame_weight, student, shape, "(F, K)",
            "Its rows are the student's frames, its columns the teachers': make it with crepa_frame_weight(student.shape[1]) "
            "where both have as many.",
        )  # fmt: skip
    if token_weight is not None:
        shape = tuple(student.shape[:-1])
        checks.weight_tensor(
            function, "token_weight", token_weight, student, shape, "(...), that of the student's tokens,"
        )
    return teachers, shares


def _checked_features(function: str, student, teachers, frames: bool) -> list[Tensor]:
    """Check student and teachers, of videos if `frames`, and return the latter as a list."""
    checks.tensor(function, "student", student)
    checks.floating(function, "student", student)
    least, layout = (3, "(B, F, ..., C)") if frames else (1, "(..., C)")
    if student.ndim < least:
        raise ValueError(
            f"{function}: `student` must have shape {layout}, {least} dimensions or more"
            + (", because frame weights mix the frames of a video" if frames else "")
            + f"; got {student.ndim}, {tuple(student.shape)}. Add the missing ones, for example student.unsqueeze(0)."
        )
    checks.not_empty(function, "student", student, layout)
    teachers, names = checks.teacher_list(function, "teachers", teachers)
    shape, layout = (*student.shape[:-1], None), "(..., C_m)"
    if frames:
        of_teachers = teachers[0].shape[1] if teachers[0].ndim > 1 else None
        shape, layout = (student.shape[0], of_teachers, *shape[2:]), "(B, K, ..., C_m)"
    for name, teacher in zip(names, teachers, strict=True):
        checks.teacher(
            function, name, teacher, student, shape, layout,
            "Only the channels may differ from the student's, and with `frame_weight` the frames, in which all teachers "
            "are alike: resample the teacher to the student's grid first.",
        )  # fmt: skip
    channels = [teacher.shape[-1] for teacher in teachers]
    if sum(channels) != student.shape[-1]:
        raise ValueError(
            f"{function}: the student's channels must be those of all teachers together, {' + '.join(map(str, channels))} = "
            f"{sum(channels)}; got {student.shape[-1]} in `student`. Project the student to {sum(channels)} channels."
        )
    return teachers


def _checked_weights(function: str, teacher_weights: Sequence[float] | None, count: int | None) -> list[float] | None:
    """Check the weights of the teachers as far as their number is known."""
    weights = checks.teacher_weights(function, teacher_weights, count)
    if weights is not None and max(weights) == 0:
        raise ValueError(
            f"{function}: `teacher_weights` must not be all 0, because their sum divides them; got {weights}. Leave the loss "
            "out, or multiply it by 0."
        )
    return weights


def crepa_frame_weight(
    num_frames: int,
    tau: float = 1.0,
    neighbours: int = 1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Frame weights of CREPA: every frame is aligned with its own teacher, and less with those of the frames around it::

        c[f, k] = exp(-|f - k| / tau)    if |f - k| <= neighbours, else 0

    Args:
        num_frames: F, at least 1, of student and teachers.
        tau: in frames, > 0; 1 (default) as published. `math.inf` weighs all alike.
        neighbours: frames on either side that count, >= 0; 1 (default) as published: the one before and the one after. 0
            leaves each frame its own teacher.
        device: of the result; torch's default device if None.
        dtype: of the result, float32 (default) or float64: of a float64 student, whose loss otherwise has weights that are
            rounded to float32.

    Returns:
        (F, F), for `patch_cosine_loss(..., frame_weight=...)`. A frame's own weight is 1; rows are not normalised.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: CREPA (Cross-frame Representation Alignment).

    Example:
        >>> import lgf_kernels as lgf
        >>> lgf.crepa_frame_weight(3)
        tensor([[1.0000, 0.3679, 0.0000],
                [0.3679, 1.0000, 0.3679],
                [0.0000, 0.3679, 1.0000]])
    """
    here = "crepa_frame_weight"
    F = checks.size(here, "num_frames", num_frames)
    tau, neighbours = _checked_crepa(here, tau, neighbours)
    frame = torch.arange(F, device=checks.device(here, device), dtype=checks.weight_dtype(here, dtype))
    apart = (frame[:, None] - frame).abs()
    return torch.exp(-apart / tau).masked_fill_(apart > min(neighbours, F), 0)


def _checked_crepa(function: str, tau, neighbours) -> tuple[float, int]:
    tau = checks.scale(function, "tau", tau, infinite=True)
    count = checks.integer(function, "neighbours", neighbours)
    if count < 0:
        raise ValueError(f"{function}: `neighbours` must be at least 0, the frame alone; got {neighbours!r}.")
    return tau, count


class PatchCosineLoss(nn.Module):
    """`patch_cosine_loss` in one of its published forms: `loss(student, teachers, token_weight=None)`.

    ========  ==========================================================================
    form      frame weights
    ========  ==========================================================================
    "repa"    none: each frame has its own teacher; with several teachers Align4Gen's
    "crepa"   `crepa_frame_weight(F, tau, neighbours)`
    ========  ==========================================================================

    Args:
        form: one of the above; default "repa".
        tau, neighbours: of "crepa", as in `lgf_kernels.crepa_frame_weight`.
        teacher_weights, reduction, backend: as in `lgf_kernels.patch_cosine_loss`, and checked here rather than in the first
            step of a training run.

    Shapes: student (..., C), for "crepa" (B, F, ..., C); teachers one or several, the same but for the channels, C_m with
    sum C; token_weight (...).

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: REPA; Align4Gen, equation 13; CREPA.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.PatchCosineLoss("crepa")
        >>> student = torch.randn(1, 13, 6, 9, 64, requires_grad=True)
        >>> criterion(student, torch.randn(1, 13, 6, 9, 64)).backward()
    """

    def __init__(
        self,
        form: str = "repa",
        tau: float = 1.0,
        neighbours: int = 1,
        teacher_weights: Sequence[float] | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__()
        here = "PatchCosineLoss"
        self.form = checks.choice(here, "form", form, ("repa", "crepa"))
        self.tau, self.neighbours = _checked_crepa(here, tau, neighbours)
        self.teacher_weights = _checked_weights(here, teacher_weights, None)
        self.reduction = checks.choice(here, "reduction", reduction, checks.REDUCTIONS)
        self.backend = checked_backend(backend, here)

    def forward(
        self, student: Tensor, teachers: Tensor | Sequence[Tensor], token_weight: Tensor | None = None
    ) -> Tensor:
        weight = None
        if self.form == "crepa":
            _checked_features("PatchCosineLoss", student, teachers, frames=True)
            where = {"device": student.device, "dtype": accumulate_dtype(student)}
            weight = crepa_frame_weight(student.shape[1], self.tau, self.neighbours, **where)
        return patch_cosine_loss(
            student,
            teachers,
            teacher_weights=self.teacher_weights,
            frame_weight=weight,
            token_weight=token_weight,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        shown = ("form", "tau", "neighbours", "teacher_weights", "reduction", "backend")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
