"""Errors of answers against the oracle in float64, on the inputs that are timed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lgf_kernels.core.verify import worst_error

from .families.base import Case, Inputs, Loss

#: A provider is right if its relative errors are at most these: of the output, and of the gradients.
TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (1e-2, 2e-2), "float16": (1e-2, 2e-2), "float64": (1e-10, 1e-10)}


class Answer(NamedTuple):
    """Output (a loss, or logits), and the gradient by each tensor that requires one."""

    output: Tensor
    gradients: list[Tensor]


def step(function: Callable, inputs: Inputs) -> Tensor:
    """Run forward and backward, as a training step does; the gradients are left in the leaves."""
    clear_gradients(inputs)
    output = function(**inputs.tensors)
    output.backward(inputs.upstream)
    return output.detach()


def clear_gradients(inputs: Inputs) -> None:
    """Leave no gradient that a backward pass would add to."""
    for leaf in inputs.leaves():
        leaf.grad = None


def gradients(inputs: Inputs) -> list[Tensor]:
    """Return what a step left in the leaves; where it left nothing, that is 0."""
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in inputs.leaves()]


def answer(function: Loss, case: Case) -> Answer:
    inputs = case.inputs()
    return Answer(step(function, inputs), gradients(inputs))


def truth(case: Case) -> Answer:
    """Return the oracle's answer in float64, added up from the parts that it comes in."""
    inputs = case.inputs().double()
    outputs = []
    for part in case.oracle(inputs.tensors):
        part.backward(inputs.upstream)
        outputs.append(part.detach())
    return Answer(sum(outputs), gradients(inputs))


def errors(given: Answer, true: Answer) -> tuple[float, float]:
    """Return the relative errors, by norm, of the output and of the worst gradient; infinite where an answer is not finite."""
    return worst_error([given.output], [true.output]), worst_error(given.gradients, true.gradients)


def is_right(off: tuple[float, float], case: Case) -> bool:
    output, gradient = TOLERANCE[case.dtype]
    return off[0] <= output and off[1] <= max(gradient, case.gradient_tolerance)
