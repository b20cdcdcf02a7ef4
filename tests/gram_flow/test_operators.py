"""The operators of Local Gram Flow as PyTorch's machinery meets them, beyond what the tests of all families check."""

import pytest
import torch
import torch._inductor.config
from support.numerics import backends_of, features, value_and_gradient
from support.operators import kept_without_a_backward, opcheck, student_and_teacher
from support.pairs import every_value
from torch._dynamo.testing import CompileCounterWithBackend

import lgf_kernels as lgf

from .calls import LOSSES


@pytest.mark.parametrize("backend", backends_of("lgf_kl"))
@every_value(direction=("forward", "both"), reduction=("mean", "none"))
def test_opcheck_lgf_kl(backend, direction, reduction):
    options = (3, 0.1, "cosine", "exclude", "kl", direction, reduction)
    student, teacher = student_and_teacher()
    arguments = (student.requires_grad_(), [teacher, teacher], [0.5, 0.5], torch.rand(2, 2, 4, 5), False, True, backend)
    opcheck(torch.ops.lgf.lgf_kl.default, (*arguments, *options))
    loss, residual = (x.detach() for x in torch.ops.lgf.lgf_kl(*arguments, *options))
    opcheck(
        torch.ops.lgf.lgf_kl_backward.default,
        (torch.randn_like(loss), student.detach(), residual, torch.rand(2, 2, 4, 5), backend, *options),
    )


@pytest.mark.parametrize("backend", backends_of("lgf_kl"))
def test_opcheck_local_gram_flow(backend):
    student, _ = student_and_teacher(torch.bfloat16)
    opcheck(torch.ops.lgf.local_gram_flow.default, (student.requires_grad_(), 3, "cosine", "forward", backend))
    opcheck(
        torch.ops.lgf.local_gram_flow_backward.default,
        (torch.randn(2, 2, 4, 5, 9), student.detach(), 3, "cosine", "forward", backend),
    )


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "local_gram_flow"])
def test_nothing_is_kept_for_a_backward_that_cannot_be(name):
    """A loss that is only measured must not cost the time and memory of its gradient."""
    assert kept_without_a_backward(LOSSES[name]) == [0, 0]


def test_what_is_kept_for_a_backward_has_no_gradient():
    student, teacher = student_and_teacher()
    options = (3, 0.1, "cosine", "exclude", "kl", "forward", "mean")
    _, kept = torch.ops.lgf.lgf_kl(student.requires_grad_(), [teacher], [1.0], None, False, True, "portable", *options)
    assert torch.autograd.grad(kept.sum(), student, allow_unused=True) == (None,)


def test_autograd_calls_the_operators_by_name():
    """Profilers, anomaly detection and a printed loss show these names."""
    student, teacher = student_and_teacher()
    student.requires_grad_()
    assert "lgf_klBackward" in repr(lgf.lgf_kl_loss(student, teacher))
    assert "local_gram_flowBackward" in repr(lgf.local_gram_flow(student))


@pytest.mark.parametrize("backend", backends_of("lgf_kl"))
def test_other_sizes_are_not_compiled_anew(backend):
    """The size of what a forward keeps for its backward follows from sizes that nobody knows yet."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda student: lgf.lgf_kl_loss(student, student.detach(), window=3, backend=backend),
        fullgraph=True, dynamic=True, backend=counter,
    )  # fmt: skip
    counts = []
    for sizes in ((2, 3, 4, 5), (3, 4, 5, 6), (4, 5, 6, 7)):
        value_and_gradient(compiled, features(*sizes, 8))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_compiles_with_inductor():
    """The default compiler, with arithmetic before and after the loss."""
    loss = lambda student, teacher: 0.5 * lgf.lgf_kl_loss(student * 2, teacher, window=3)  # noqa: E731
    student, teacher = student_and_teacher()
    compiled = torch.compile(loss, fullgraph=True)
    with torch._inductor.config.patch(force_disable_caches=True):  # those may be of other versions of the operators
        results = value_and_gradient(compiled, student, teacher)
    for ours, theirs in zip(results, value_and_gradient(loss, student, teacher), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_caches_and_upstream_gradients_that_memory_does_not_hold():
    student, teacher = student_and_teacher()
    cache, upstream = lgf.local_gram_flow(teacher), torch.randn(2, 2, 4, 5)

    def run(cache, upstream):
        leaf = student.clone().requires_grad_()
        value = lgf.lgf_kl_loss_from_logits(leaf, cache, reduction="none")
        return value, *torch.autograd.grad(value, leaf, upstream)

    plain = run(cache, upstream)
    assert all(map(torch.equal, run(torch._neg_view(-cache), torch._neg_view(-upstream)), plain))
    assert (run(cache, torch._efficientzerotensor(upstream.shape))[1] == 0).all()


def test_vmap_does_not_drop_the_gradient_of_a_teacher():
    student, teacher = features(3, 2, 3, 4, 5, 6), features(3, 2, 3, 4, 5, 6, requires_grad=True)
    with pytest.raises(ValueError, match="requires grad, but the loss has no gradient for it"):
        torch.vmap(lgf.lgf_kl_loss)(student, teacher)
