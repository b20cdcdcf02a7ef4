"""The operator of patch cosine as PyTorch's machinery meets it, beyond what the tests of all families check."""

import pytest
import torch
from support.numerics import backends_of
from support.operators import kept_without_a_backward, opcheck, student_and_teacher
from support.pairs import every_value

import lgf_kernels as lgf

from .calls import LOSSES, teachers_of


@every_value(backend=backends_of("patch_cosine"), more=(False, True))
def test_opcheck_patch_cosine(backend, more):
    student, teacher = student_and_teacher(torch.bfloat16)
    weights = (lgf.crepa_frame_weight(3), torch.rand(2, 3, 4, 5), "none") if more else (None, None, "mean")
    arguments = (teachers_of(student, teacher), [0.6, 0.8], *weights, True, backend)
    opcheck(torch.ops.lgf.patch_cosine.default, (student.clone().requires_grad_(), *arguments))
    loss, *kept = (x.detach() for x in torch.ops.lgf.patch_cosine(student, *arguments))
    opcheck(torch.ops.lgf.patch_cosine_backward.default, (torch.randn_like(loss), *kept, backend))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_kept_for_a_backward_that_cannot_be(name):
    """A loss that is only measured must not cost the time and memory of its gradient."""
    assert kept_without_a_backward(LOSSES[name]) == [0, 0]


def test_what_is_kept_for_a_backward_has_no_gradient():
    student, teacher = student_and_teacher()
    arguments = (teachers_of(student, teacher), [0.6, 0.8], None, None, "mean", True, "portable")
    _, *kept = torch.ops.lgf.patch_cosine(student.requires_grad_(), *arguments)
    for part in kept:
        assert torch.autograd.grad(part.sum(), student, allow_unused=True) == (None,)


def test_autograd_calls_the_operator_by_name():
    """Profilers, anomaly detection and a printed loss show this name."""
    student, teacher = student_and_teacher()
    assert "patch_cosineBackward" in repr(lgf.patch_cosine_loss(student.requires_grad_(), teacher[..., :6]))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing_in_the_oracle(name):
    student, teacher = student_and_teacher()
    plain = LOSSES[name](student, teacher, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](student, teacher, backend="reference"), plain)
