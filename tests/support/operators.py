"""Calls of the losses of all families, and what they do in PyTorch's dispatcher."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support import families
from support.numerics import features

LOSSES = families.losses()
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def student_and_teacher(dtype=torch.float32):
    return features(2, 3, 4, 5, 6, dtype=dtype), features(2, 3, 4, 5, 7)


class Watch(TorchDispatchMode):
    """Names of all operators that pass the dispatcher, and how much those of this library keep for a backward."""

    def __init__(self):
        super().__init__()
        self.seen, self.kept = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.append(function.name())
        if function.name().startswith("lgf::") and isinstance(result, tuple):
            self.kept.append(result[1].numel())
        return result


def kept_without_a_backward(loss) -> list[int]:
    """Return how many numbers two calls keep: without a leaf, and with one while no gradients are made."""
    student, teacher = student_and_teacher()
    watches = []
    for leaf, grad_mode in ((student, True), (student.clone().requires_grad_(), False)):
        with torch.set_grad_enabled(grad_mode), Watch() as watch:
            loss(leaf, teacher)
        watches.append(watch)
    return [number for watch in watches for number in watch.kept]


def opcheck(operator, arguments):
    with torch.random.fork_rng():
        torch.library.opcheck(operator, arguments)
