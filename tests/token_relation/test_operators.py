"""The operator of token relations as PyTorch's machinery meets it, beyond what the tests of all families check."""

import pytest
import torch
from support.operators import kept_without_a_backward, opcheck, student_and_teacher

import lgf_kernels as lgf
from lgf_kernels.token_relation.options import RelationOptions

from .calls import LOSSES


@pytest.mark.parametrize(
    "options",
    [
        RelationOptions(margin=0.1),
        RelationOptions(reduction="none"),
        RelationOptions(distance="l2"),
        RelationOptions(0.0, "l2", "clamp", "dot", "sum"),
    ],
)
def test_opcheck_token_relation(options):
    student, teacher = (f.flatten(2, 3) for f in student_and_teacher(torch.bfloat16))
    arguments = (student.detach().requires_grad_(), teacher, torch.ones(3, 3), *options, True, "portable")
    opcheck(torch.ops.lgf.token_relation.default, arguments)
    loss, residual = (x.detach() for x in torch.ops.lgf.token_relation(*arguments))
    opcheck(
        torch.ops.lgf.token_relation_backward.default,
        (torch.randn_like(loss), residual, options.reduction, torch.bfloat16, "portable"),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_kept_for_a_backward_that_cannot_be(name):
    """A loss that is only measured must not cost the time and memory of its gradient."""
    assert kept_without_a_backward(LOSSES[name]) == [0, 0]


def test_what_is_kept_for_a_backward_has_no_gradient():
    student, teacher = (f.flatten(2, 3) for f in student_and_teacher())
    _, kept = torch.ops.lgf.token_relation(
        student.requires_grad_(), teacher, torch.ones(3, 3), *RelationOptions(), True, "portable"
    )
    assert torch.autograd.grad(kept.sum(), student, allow_unused=True) == (None,)


def test_autograd_calls_the_operator_by_name():
    """Profilers, anomaly detection and a printed loss show this name."""
    student, teacher = student_and_teacher()
    loss = lgf.token_relation_loss(student.requires_grad_(), teacher, pair_weight=torch.ones(3, 3))
    assert "token_relationBackward" in repr(loss)


def test_autocast_changes_nothing_in_the_oracle():
    student, teacher = student_and_teacher()
    plain = lgf.token_relation_loss(student, teacher, pair_weight=torch.ones(3, 3), backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = lgf.token_relation_loss(student, teacher, pair_weight=torch.ones(3, 3), backend="reference")
    assert torch.equal(plain, cast)
