"""The losses where a decision of tracing meets another run, and for tensors that are parts of others."""

import pytest
import torch
from support.operators import LOSSES, Watch, losses, student_and_teacher
from torch import nn

from lgf_kernels.core.autograd import Differentiable, Pass
from lgf_kernels.core.registry import OPERATORS, implementation
from lgf_kernels.gram_flow.options import LgfOptions

HALF_AND_FULL = torch.bfloat16, torch.float32


#: Loss -> numbers of elements that the portable backend keeps for `student_and_teacher()`. Whoever changes one raises
#: `version` of the operator's `Differentiable`: inductor's cache would run programs that allocate the old size.
KEPT = {
    "lgf_kl": [720], "lgf_kl token weights": [1440], "lgf_kl none": [3920], "from logits": [3920], "local_gram_flow": [],
    "patch_cosine": [720], "patch_cosine frames": [720],
    "point_correspondence": [48], "point_correspondence_loss": [96], "point_correspondence_loss none": [96],
    "token_relation": [720], "token_relation none": [720], "token_relation gram": [720], "token_relation clamped": [720],
}  # fmt: skip


class Module(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, student, teacher):
        return self.loss(student, teacher)


@pytest.mark.parametrize("loss", [pytest.param(it, id=name) for name, it in LOSSES.items() if KEPT[name]])
def test_a_program_exported_without_gradient_says_so_when_it_is_trained(loss):
    student, teacher = student_and_teacher()
    with torch.no_grad():
        program = torch.export.export(Module(loss), (student.detach(), teacher)).module()
        assert torch.equal(program(student.detach(), teacher), loss(student.detach(), teacher))
    value = program(student.detach().requires_grad_(), teacher)
    with pytest.raises(RuntimeError, match=r"traced or exported without a gradient.*Trace it again"):
        value.backward()


@losses
def test_a_program_exported_with_gradient_trains(loss):
    student, teacher = student_and_teacher()
    program = torch.export.export(Module(loss), (student.requires_grad_(), teacher)).module()
    (ours,) = torch.autograd.grad(program(student, teacher), student)
    (theirs,) = torch.autograd.grad(loss(student, teacher), student)
    assert torch.equal(ours, theirs)


@losses
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and the tracer warns of every size that a check reads
def test_what_torch_jit_traces_is_the_operator(loss):
    student, teacher = student_and_teacher()
    traced = torch.jit.trace(lambda x: loss(x, teacher), student.clone().requires_grad_(), check_trace=False)
    other = student.flip(2).requires_grad_()
    ours, theirs = traced(other), loss(other, teacher)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(value, other)[0] for value in (ours, theirs)))


@pytest.fixture
def mesh():
    """A mesh of one process."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "which"),
    [(name, "student") for name in LOSSES]
    + [(name, "teacher") for name in ("lgf_kl", "from logits", "token_relation")],
)
def test_dtensors_are_refused_with_the_way_out(name, which, mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    loss = LOSSES[name]
    tensors = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    plain = loss(**tensors)
    parts = tensors | {which: distribute_tensor(tensors[which], mesh, [Shard(0)])}
    with pytest.raises(TypeError, match=r"must be a plain tensor, got a DTensor.*to_local\(\).*full_tensor\(\)"):
        loss(**parts)
    assert torch.equal(loss(**{name: getattr(t, "to_local", lambda t=t: t)() for name, t in parts.items()}), plain)


# ---- what the forward keeps for the backward --------------------------------------------------------------------------


def test_a_version_of_what_is_kept_is_part_of_the_operators_name():
    def compute(x: torch.Tensor, needs_grad: bool) -> torch.Tensor:
        return x * 2

    def backward(grad: torch.Tensor) -> torch.Tensor:
        return grad * 2

    def save(ctx, inputs, output):
        pass

    passes = Pass(compute, lambda x, needs_grad: torch.empty_like(x)), Pass(backward, torch.empty_like)
    made = Differentiable("kept_test", "kept", *passes, save, lambda ctx, run, g: (run(g), None), version=3)
    names = [it.operator._qualname for it in (made.forward, made.backward)]
    assert names == ["lgf::kept_test_v3", "lgf::kept_test_v3_backward"]
    assert {name for name in OPERATORS if name.endswith("_v3")} == set()


@losses
def test_what_is_kept_changes_with_the_version_alone(loss, request):
    student, teacher = student_and_teacher()
    with Watch() as watch:
        loss(student.requires_grad_(), teacher, backend="portable")
    assert watch.kept == KEPT[request.node.callspec.id]


def test_what_the_gpu_kernels_of_the_flow_loss_keep_changes_with_the_version_alone():
    student, sizes = torch.zeros(2, 3, 4, 5, 8), {}
    for backend in ("native", "triton"):
        empty = implementation("lgf_kl", backend, "cuda").empty_residual
        sizes[backend] = [empty(student.to(dtype), LgfOptions(window=7), True).nbytes for dtype in HALF_AND_FULL]
    assert sizes == {"native": [9440, 18400], "triton": [9440, 18400]}
