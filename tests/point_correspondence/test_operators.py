"""The operators of point correspondence as PyTorch's machinery meets them, beyond what the tests of all families check."""

import pytest
import torch
from support.numerics import backends_of
from support.operators import kept_without_a_backward, opcheck, student_and_teacher
from support.pairs import every_value

import lgf_kernels as lgf

from .calls import LOSSES, tracks_of


@every_value(backend=backends_of("point_correspondence"), more=(False, True))
def test_opcheck_point_correspondence(backend, more):
    window, reduction = (1, "none") if more else (None, "mean")
    student, teacher = student_and_teacher(torch.bfloat16)
    queries, targets, weight = tracks_of(teacher)
    options = (True, backend, 0.05, window)
    opcheck(torch.ops.lgf.point_correspondence.default, (student.requires_grad_(), queries, *options))
    places, state = (x.detach() for x in torch.ops.lgf.point_correspondence(student, queries, *options))
    arguments = (torch.randn_like(places), student.detach(), queries, places, state, backend, 0.05, window)
    opcheck(torch.ops.lgf.point_correspondence_backward.default, arguments)
    options = (*options, "huber", 1.0, reduction)
    arguments = (student, queries, targets, weight)
    opcheck(torch.ops.lgf.point_correspondence_loss.default, (*arguments, *options))
    loss, places, state = (x.detach() for x in torch.ops.lgf.point_correspondence_loss(*arguments, *options))
    opcheck(
        torch.ops.lgf.point_correspondence_loss_backward.default,
        (torch.randn_like(loss), student.detach(), queries, targets, weight, places, state, *options[1:]),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_kept_for_a_backward_that_cannot_be(name):
    """A loss that is only measured must not cost the memory of its gradient."""
    assert kept_without_a_backward(LOSSES[name]) == [0, 0]


def test_what_is_kept_for_a_backward_has_no_gradient():
    student, teacher = student_and_teacher()
    options = (True, "portable", 0.05, None, "huber", 1.0, "mean")
    _, *kept = torch.ops.lgf.point_correspondence_loss(student.requires_grad_(), *tracks_of(teacher), *options)
    for part in kept:
        assert torch.autograd.grad(part.sum(), student, allow_unused=True) == (None,)


def test_autograd_calls_the_operators_by_name():
    """Profilers, anomaly detection and a printed loss show these names."""
    student, teacher = student_and_teacher()
    queries, targets, weight = tracks_of(teacher)
    loss = lgf.point_correspondence_loss(student.requires_grad_(), queries, targets, weight)
    assert "point_correspondence_lossBackward" in repr(loss)
    assert "point_correspondenceBackward" in repr(lgf.point_correspondence(student, queries))
