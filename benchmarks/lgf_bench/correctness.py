"""The answer comes first: errors against the oracle in float64, on the very inputs that are timed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import lgf_kernels as lgf

from .cases import Case

#: A provider is right if its relative errors are at most these: of the output, and of the gradient.
TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (1e-2, 2e-2), "float16": (1e-2, 2e-2), "float64": (1e-10, 1e-10)}
#: The gradient of token relations jumps where a difference passes 0 or the margin. Of the n * n pairs, rounding puts a few on the
#: other side, whoever computes it, and that moves the gradient by a few thousandths.
JUMPS = 1e-2
#: Elements of a matrix of relations that the oracle makes at a time.
MATRIX = 2**24


class Answer(NamedTuple):
    """Output (a loss, or logits) and gradient by the student."""

    output: Tensor
    gradient: Tensor


def step(function: Callable, student: Tensor, teachers: list[Tensor], upstream: Tensor | None = None) -> Tensor:
    """One forward and backward, as a training step does them; the gradient is left in `student.grad`."""
    student.grad = None
    output = function(student, teachers)
    output.backward(upstream)
    return output.detach()


def answer(function: Callable, case: Case) -> Answer:
    student, teachers, upstream = case.inputs()
    return Answer(step(function, student, teachers, upstream), student.grad)


def truth(case: Case) -> Answer:
    """What the oracle gives in float64. It takes a loss in parts that fit in memory, and adds them up."""
    student, teachers, upstream = case.inputs()
    student = student.detach().double().requires_grad_()
    if not case.cached:
        teachers = [teacher.double() for teacher in teachers]
    parts = {"lgf_kl": _pairs_of_frames, "local_gram_flow": _whole, "token_relation": _pairs_of_groups}[case.operator]
    outputs = []
    for part in parts(case, student, teachers):
        part.backward(None if upstream is None else upstream.double())
        outputs.append(part.detach())
    return Answer(sum(outputs), student.grad)


def _whole(case: Case, student: Tensor, teachers: list[Tensor]):
    yield case.call()(student, teachers, backend="reference")


def _pairs_of_frames(case: Case, student: Tensor, teachers: list[Tensor]):
    """The loss is a mean over pairs of successive frames: each alone. A cache has one entry for a pair."""
    B, T, H, W, _ = student.shape
    call, wide = case.call(), 1 if case.cached else 2
    for t in range(T - 1):
        values = call(
            student[:, t : t + 2], [x[:, t : t + wide] for x in teachers], reduction="sum", backend="reference"
        )
        yield values / (B * (T - 1) * H * W)


def _pairs_of_groups(case: Case, student: Tensor, teachers: list[Tensor]):
    """The loss is a sum over pairs of frames: those of two groups of frames at a time, with all other weights 0."""
    loss = lgf.TokenRelationLoss(case.form)
    B, F, N, _ = student.shape
    weight = loss.pair_weight(F, student.device).double()
    width = max(1, int((MATRIX / B) ** 0.5 / N / 2))
    groups = [list(range(start, min(start + width, F))) for start in range(0, F, width)]
    for i, one in enumerate(groups):
        for other in groups[i:]:
            frames = one if one is other else one + other
            c = weight[frames][:, frames].clone()
            if one is not other:
                c[: len(one), : len(one)] = c[len(one) :, len(one) :] = 0
            yield lgf.token_relation_loss(
                student[:, frames], teachers[0][:, frames], pair_weight=c, margin=loss.margin, backend="reference"
            )


def errors(given: Answer, true: Answer) -> tuple[float, float]:
    """Relative errors of output and gradient, by norm. NaN where an answer is not finite."""

    def relative(a: Tensor, b: Tensor) -> float:
        return (torch.linalg.vector_norm(a.double() - b) / torch.linalg.vector_norm(b)).item()

    return relative(given.output, true.output), relative(given.gradient, true.gradient)


def is_right(off: tuple[float, float], case: Case) -> bool:
    output, gradient = TOLERANCE[case.dtype]
    if case.operator == "token_relation":
        gradient = max(gradient, JUMPS)
    return off[0] <= output and off[1] <= gradient
