"""Patch cosine some tokens at a time: no normalised or concatenated copy of all features.

The formulas are in `folding.py`. The backward multiplies what the forward wrote.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.numerics import EPS, accumulate_dtype, norms
from ..core.registry import Implementation
from .folding import Tokens, empty_residual, empty_tokens

#: Bytes of all temporaries of a chunk: on a CPU what stays in its caches, elsewhere what fills the device.
CHUNK_BYTES = {"cpu": 2**22}
CHUNK_BYTES_ELSEWHERE = 2**26
#: Copies of a student's and of a teacher's features, in the accumulation type, that a chunk has at a time.
STUDENT_COPIES, TEACHER_COPIES = 3, 3


def forward(
    student: Tensor, teachers: list[Tensor], shares: list[float], frame_weight: Tensor | None, needs_grad: bool
) -> Tokens:
    """Return the distances, the reciprocal norms and, if `needs_grad`, the gradient without them (`folding.Tokens`).

    student (B, F, H, W, C), teachers (B, K, H, W, C_m), frame_weight (F, K) with rows of sum 1 or 0.
    """
    tokens = empty_tokens(student, needs_grad)
    for place in chunks(student, teachers, frame_weight):
        h = student[place].to(tokens.distance.dtype).contiguous()
        folded, broken = fold([teacher[place] for teacher in teachers], shares, h.dtype)
        if frame_weight is not None:
            folded, broken = mix(folded, broken, frame_weight)
        norm = norms(h)
        reciprocal = norm.clamp_min(EPS).reciprocal_()
        r = (h * folded).sum(-1, keepdim=True).mul_(reciprocal).masked_fill_(broken, torch.nan)
        tokens.distance[place] = 1 - r.squeeze(-1)
        tokens.reciprocal[place] = reciprocal.squeeze(-1)
        if needs_grad:
            along = r * torch.where(norm >= EPS, reciprocal, 0)
            tokens.gradient[place] = folded.neg_().addcmul_(h, along)
    return tokens


def fold(teachers: list[Tensor], shares: Sequence[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return y (..., C), 0 where a norm is not finite, and where one is not (..., 1)."""
    parts, broken = [], False
    for teacher, share in zip(teachers, shares, strict=True):
        f = teacher.to(dtype).contiguous()  # which decides the order of sums
        norm = norms(f)
        not_finite = norm.isnan()
        parts.append((f * (share / norm.clamp_min(EPS))).masked_fill_(not_finite, 0))
        broken = not_finite | broken
    return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)), broken


def mix(y: Tensor, broken: Tensor, frame_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return T (1, F, H, W, C) from y (1, K, H, W, C), and which of its tokens a frame with a weight makes not finite.

    A matrix product, in which the weight of a frame that does not count must not meet NaN.
    """
    weighted = frame_weight @ y.flatten(2).squeeze(0)
    counted = (frame_weight != 0).to(y.dtype) @ broken.to(y.dtype).flatten(2).squeeze(0)
    return weighted.view(1, -1, *y.shape[2:]), counted.view(1, -1, *broken.shape[2:]) > 0


def chunks(student: Tensor, teachers: list[Tensor], frame_weight: Tensor | None) -> Iterator[tuple[slice, ...]]:
    """Yield places (b, t, y, x) of few enough tokens, each with all frames if these are mixed."""
    size = STUDENT_COPIES + TEACHER_COPIES
    if frame_weight is not None:
        size = STUDENT_COPIES * student.shape[1] + TEACHER_COPIES * teachers[0].shape[1]
    size *= student.shape[-1] * accumulate_dtype(student).itemsize
    most = max(1, CHUNK_BYTES.get(student.device.type, CHUNK_BYTES_ELSEWHERE) // size)
    B, F, H, W = student.shape[:4]
    if frame_weight is None:
        yield from parts((B, F, H, W), most)
    else:
        # Whole videos one at a time: the product of `mix` is that of one.
        for b, (y, x) in itertools.product(range(B), parts((H, W), most)):
            yield slice(b, b + 1), slice(None), y, x


def parts(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Cut a grid into parts of at most so many elements, each contiguous in row-major order."""
    first, *rest = shape
    inner = torch.Size(rest).numel()
    if inner > most:
        for i, other in itertools.product(range(first), parts(tuple(rest), most)):
            yield slice(i, i + 1), *other
        return
    step = most // inner
    for i in range(0, first, step):
        yield slice(i, i + step), *[slice(None)] * len(rest)


def backward(grad_loss: Tensor, gradient: Tensor, factor: Tensor) -> Tensor:
    """Return the gradient of the student, rounded once more: G times the factors times the upstream gradient."""
    scale = (grad_loss * factor).unsqueeze(-1)
    out = torch.empty_like(gradient)
    for place in chunks(gradient, [], None):
        # On a CPU torch converts the operands before it multiplies, in memory.
        torch.mul(gradient[place], scale[place], out=out[place])
    return out


patch_cosine = Implementation(forward, backward, empty_residual)
