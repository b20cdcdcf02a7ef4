"""Calls of losses whose compiled Triton kernels run on the model."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from support.numerics import double, features, relative_error, value_and_gradient
from torch import Tensor

import lgf_kernels as lgf


def list_of_teachers(teachers: list[Tensor]) -> tuple[list, dict]:
    return ([teachers] if teachers else []), {}


class Case(NamedTuple):
    """A call: the student's shape and type, the channels of the teachers, and options.

    `row` is the configuration that the kernels run with. `arguments` makes the loss's arguments after the student, and
    further options, from the teachers' features.
    """

    loss: str
    dtype: str
    shape: tuple[int, ...]
    teachers: tuple[int, ...]
    options: dict
    gradient: bool = True
    row: tuple | None = None
    arguments: Callable[[list[Tensor]], tuple[list, dict]] = list_of_teachers

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        words = [self.loss, self.dtype, *self.shape, "teachers", *self.teachers, *options, self.row or ""]
        return " ".join(map(str, words)).strip()

    def errors(self) -> list[float]:
        """Return the relative errors of the value and, if asked for, of the gradient, against the oracle in float64."""
        loss = getattr(lgf, self.loss)
        student = features(*self.shape, dtype=getattr(torch, self.dtype))
        teachers = [features(*self.shape[:-1], channels, dtype=student.dtype) for channels in self.teachers]
        others, more = self.arguments(teachers)
        options = self.options | more
        if not self.gradient:
            truth = loss(student.double(), *map(double, others), backend="reference", **options)
            return [relative_error(loss(student, *others, backend="triton", **options), truth)]
        upstream = torch.randn(loss(student, *others, backend="reference", **options).shape, dtype=torch.float64)
        options["upstream"] = upstream
        ours = value_and_gradient(loss, student, *others, backend="triton", **options)
        truth = value_and_gradient(loss, student.double(), *map(double, others), backend="reference", **options)
        return [relative_error(our, true) for our, true in zip(ours, truth, strict=True)]
