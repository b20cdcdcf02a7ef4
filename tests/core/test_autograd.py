"""The losses of all families under autograd: autocast, checkpointing, second derivatives, forward mode."""

import copy

import pytest
import torch
from support.numerics import features, value_and_gradient
from support.operators import Watch, losses, student_and_teacher
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import lgf_kernels as lgf


@losses
def test_autocast_changes_nothing(loss):
    student, teacher = student_and_teacher(torch.bfloat16)
    plain = value_and_gradient(loss, student, teacher)
    leaf = student.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(leaf, teacher)
        (gradient,) = torch.autograd.grad(value, leaf)
    assert value.dtype == torch.float32
    assert torch.equal(value, plain[0]) and torch.equal(gradient, plain[1])


@losses
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(loss, use_reentrant):
    student, teacher = student_and_teacher()
    plain = value_and_gradient(loss, student, teacher)
    again = value_and_gradient(lambda s, t: checkpoint(loss, s, t, use_reentrant=use_reentrant), student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@losses
def test_no_gradient_is_asked_for(loss):
    student, teacher = student_and_teacher()
    with torch.no_grad():
        frozen = loss(student.requires_grad_(), teacher)
    with torch.inference_mode():
        inference = loss(student.detach(), teacher)
    assert not frozen.requires_grad and torch.equal(frozen, inference)
    assert torch.equal(frozen, loss(student, teacher).detach())


def test_constants_may_come_from_inference_mode():
    """As a tracker's points and their visibility do, or a mask."""
    student, teacher = student_and_teacher()
    constants = {
        "weight": torch.rand(2, 2, 4, 5), "frames": torch.rand(3, 3), "queries": torch.tensor([[[0, 1.5, 2.0]]] * 2),
        "targets": torch.rand(2, 1, 3, 2), "visible": torch.rand(2, 1, 3),
    }  # fmt: skip

    def gradient(teacher, weight, frames, queries, targets, visible):
        leaf = student.clone().requires_grad_()
        values = (
            lgf.lgf_kl_loss(leaf, teacher, token_weight=weight),
            lgf.token_relation_loss(leaf, teacher, pair_weight=frames),
            lgf.patch_cosine_loss(leaf, teacher[..., :6], frame_weight=frames, token_weight=leaf.new_ones(2, 3, 4, 5)),
            lgf.point_correspondence(leaf, queries).sum(),
            lgf.point_correspondence_loss(leaf, queries, targets, visible),
        )
        return torch.autograd.grad(sum(values), leaf)[0]

    with torch.inference_mode():
        made = {name: constant.clone() for name, constant in (constants | {"teacher": teacher}).items()}
    assert torch.equal(gradient(**made), gradient(teacher, **constants))


@losses
def test_a_backward_makes_no_gradient_of_what_was_kept_for_it(loss):
    """It would be zeros, as large as what a forward keeps."""
    student, teacher = student_and_teacher()
    value = loss(student.requires_grad_(), teacher)
    with Watch() as watch:
        value.backward()
    assert any(name.startswith("lgf::") for name in watch.seen) and "aten::zeros" not in watch.seen


@losses
def test_gradient_goes_through_to_what_made_the_student(loss):
    student, teacher = student_and_teacher()
    layer = torch.nn.Linear(6, 9)
    loss(layer(student), teacher).backward()
    truth = copy.deepcopy(layer)
    truth.zero_grad()
    loss(truth(student), teacher, backend="reference").backward()
    torch.testing.assert_close(layer.weight.grad, truth.weight.grad, rtol=1e-4, atol=1e-7)


@losses
def test_second_derivative_is_refused(loss):
    student, teacher = student_and_teacher()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student, create_graph=True)
    with pytest.raises(ValueError, match="once differentiable"):
        gradient.square().sum().backward()


@losses
def test_threads_do_not_change_the_portable_result_beyond_rounding(loss):
    student, teacher = student_and_teacher()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = value_and_gradient(loss, student, teacher, backend="portable")
        torch.set_num_threads(2)
        two = value_and_gradient(loss, student, teacher, backend="portable")
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


@losses
def test_numbers_that_memory_does_not_hold(loss):
    """A negation that torch has put off, and teachers that are wrappers around the tensor with the numbers."""
    student, teacher = student_and_teacher()
    plain = value_and_gradient(loss, student, teacher)
    negated = value_and_gradient(loss, torch._neg_view(-student), torch._neg_view(-teacher))
    assert all(torch.equal(a, b) for a, b in zip(plain, negated, strict=True))
    wrapped = value_and_gradient(loss, student, TwoTensor(teacher, teacher))
    assert all(torch.equal(getattr(a, "a", a), b) for a, b in zip(wrapped, plain, strict=True))


@losses
def test_function_transforms(loss):
    student, teacher = features(3, 2, 3, 4, 5, 6), features(2, 3, 4, 5, 7)
    alone = [value_and_gradient(loss, one, teacher) for one in student]
    gradient, value = torch.func.grad_and_value(loss)(student[0], teacher)
    torch.testing.assert_close((value, gradient), tuple(alone[0]))
    for_each = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(student, teacher)
    torch.testing.assert_close(for_each, torch.stack([gradient for _, gradient in alone]))
    with pytest.raises(lgf.OnceDifferentiableError, match="once differentiable"):
        torch.func.grad(lambda s: torch.func.grad(loss)(s, teacher).square().sum())(student[0])


@losses
def test_forward_mode_is_refused(loss):
    """torch would drop the tangents silently."""
    student, teacher = student_and_teacher()
    with pytest.raises(lgf.BackendUnavailableError, match=r"the kernels have no derivative for .*jvp"):
        torch.func.jvp(lambda s: loss(s, teacher), (student,), (student,))
    for grad_mode in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            dual = forward_ad.make_dual(student, student)
            with pytest.raises(lgf.BackendUnavailableError, match='backend="reference"'):
                loss(dual, teacher)
            assert forward_ad.unpack_dual(loss(dual, teacher, backend="reference")).tangent is not None


@losses
def test_many_upstream_gradients_at_once(loss):
    """What vectorised Jacobians do, with a vmap of its own kind."""
    student, teacher = student_and_teacher()
    student.requires_grad_()
    value, upstream = loss(student, teacher), torch.tensor([1.0, -2.0])
    (gradients,) = torch.autograd.grad(value, student, upstream, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradients, torch.stack([one, -2 * one]))
