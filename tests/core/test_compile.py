"""The losses of all families under dispatch modes, torch.compile, vmap and meta tensors."""

import importlib

import pytest
import torch
from support import families
from support.numerics import features, value_and_gradient
from support.operators import LOSSES, Watch, losses, student_and_teacher
from torch._subclasses import FakeTensor, FakeTensorMode

from lgf_kernels.core.registry import implementation


@losses
def test_dispatch_modes_see_the_operators(loss):
    """Eager calls pass the dispatcher by; profilers, checkpoint policies and fake tensors still meet the operators."""
    student, teacher = student_and_teacher()
    with Watch() as watch:
        watched = value_and_gradient(loss, student, teacher)
    names = {name for name in watch.seen if name.startswith("lgf::")}
    (backward,) = (name for name in names if name.endswith("_backward"))
    assert backward.removesuffix("_backward") in names
    assert all(torch.equal(a, b) for a, b in zip(watched, value_and_gradient(loss, student, teacher), strict=True))
    with FakeTensorMode(allow_non_fake_inputs=True):
        value = loss(torch.empty(2, 3, 4, 5, 6, requires_grad=True), torch.empty(2, 3, 4, 5, 7))
    assert isinstance(value, FakeTensor) and value.requires_grad


@losses
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(loss, dynamic):
    student, teacher = student_and_teacher()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for ours, theirs in zip(
        value_and_gradient(compiled, student, teacher), value_and_gradient(loss, student, teacher), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_compile_sees_use_backend_and_the_environment(monkeypatch):
    student, teacher = student_and_teacher()

    def run():
        torch.compiler.reset()
        return torch.compile(LOSSES["lgf_kl"], fullgraph=True, backend="aot_eager")(student, teacher)

    monkeypatch.setenv("LGF_BACKEND", "portable")
    assert torch.equal(run(), LOSSES["lgf_kl"](student, teacher, backend="portable"))
    monkeypatch.setenv("LGF_BACKEND", "nonsense")
    with pytest.raises(Exception, match="nonsense"):
        run()


@losses
def test_vmap_is_a_call_for_each(loss, recwarn):
    """In any dimension of the student, with teachers of their own or one in common, and a gradient for each."""
    student, teacher = features(2, 3, 4, 5, 3, 6), features(3, 2, 3, 4, 5, 7)

    def values_and_gradient(calls):
        leaf = student.clone().requires_grad_()
        values = calls(leaf)
        return values, torch.autograd.grad((values * torch.tensor([1.0, 2.0, 3.0])).sum(), leaf)[0]

    mapped = values_and_gradient(lambda leaf: torch.vmap(loss, in_dims=(4, 0))(leaf, teacher))
    alone = values_and_gradient(lambda leaf: torch.stack(list(map(loss, leaf.unbind(4), teacher))))
    torch.testing.assert_close(mapped, alone)
    torch.compiler.reset()  # to it the losses are one function, and a function may be compiled only so many times
    compiled = torch.compile(torch.vmap(loss, in_dims=(4, 0)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(values_and_gradient(lambda leaf: compiled(leaf, teacher)), alone)
    in_common = torch.vmap(loss, in_dims=(4, None))(student, teacher[0])
    torch.testing.assert_close(in_common[0], alone[0][0])
    assert not [warning for warning in recwarn if "performance drop" in str(warning.message)]


@losses
@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_devices_without_autocast(loss, backend):
    """On meta tensors the losses tell the shapes of what they would return."""
    student, teacher = student_and_teacher()
    with torch.device("meta"):
        value = loss(
            torch.empty_like(student, device="meta"), torch.empty_like(teacher, device="meta"), backend=backend
        )
    truth = loss(student, teacher, backend=backend)
    assert value.is_meta and value.shape == truth.shape and value.dtype == truth.dtype


@losses
def test_meta_tensors_of_any_size(loss, monkeypatch):
    """2^33 elements: what holds no numbers is not computed with, tile by tile, and no size is cut to 32 bits."""
    for family in families.families():
        operators = importlib.import_module(f"lgf_kernels.{family}.operators")
        monkeypatch.setattr(operators, "implementation", lambda *names: implementation(*names)._replace(forward=None))
    student = torch.empty(2, 64, 256, 256, 1024, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with torch.device("meta"):
        loss(student, torch.empty(2, 64, 256, 256, 32)).backward()
    assert student.grad.shape == student.shape and student.grad.dtype == torch.bfloat16
