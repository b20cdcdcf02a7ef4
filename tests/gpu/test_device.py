"""What only a GPU can tell, of every loss and backend: whether kernels wait, repeat, are captured, run on another device."""

import pytest
import torch
from support.families import of_every_family
from support.numerics import assert_close, backends_of, features, relative_error, value_and_gradient

import lgf_kernels as lgf
from lgf_kernels.core.registry import OPERATORS

HALF_AND_SINGLE = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


def calls(of_family: int | None = None):
    """Return the parameters `loss` and `backend`: all of every family, or its first few losses."""
    found = []
    for family, module in of_every_family("calls").items():
        operator = next(name for name, it in OPERATORS.items() if it.package.endswith(f".{family}"))
        for name, loss in list(module.LOSSES.items())[:of_family]:
            for backend in backends_of(operator, "cuda"):
                found.append(pytest.param(loss, backend, id=f"{backend}-{name}"))
    return pytest.mark.parametrize("loss, backend", found)


def student_and_teacher(dtype=torch.float32, device="cuda"):
    return features(1, 3, 9, 19, 40, dtype=dtype).to(device), features(1, 3, 9, 19, 24).to(device)


@pytest.mark.parametrize("backend", [name for name in backends_of("token_relation", "cuda") if name != "portable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_same_features_differ_by_nothing(backend, dtype):
    """What the interpreter and the model of a GPU cannot show: whether compilers fuse one product and not the other."""
    student, weight = features(1, 3, 150, 64, dtype=dtype).cuda(), torch.ones(3, 3, device="cuda")
    value, gradient = value_and_gradient(
        lgf.token_relation_loss, student, student.clone(), pair_weight=weight, backend=backend
    )
    assert value == 0 and not gradient.any()


@calls()
@HALF_AND_SINGLE
def test_two_runs_are_bitwise_equal(loss, backend, dtype):
    student, teacher = student_and_teacher(dtype)
    first, second = (value_and_gradient(loss, student, teacher, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@calls()
@HALF_AND_SINGLE
def test_the_host_never_waits(loss, backend, dtype):
    student, teacher = student_and_teacher(dtype)
    value_and_gradient(loss, student, teacher, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value_and_gradient(loss, student, teacher, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@calls()
@HALF_AND_SINGLE
def test_cuda_graph(loss, backend, dtype):
    student, teacher = student_and_teacher(dtype)
    expected = value_and_gradient(loss, student, teacher, backend=backend)
    leaf = student.detach().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loss(leaf, teacher, backend=backend).backward()
    torch.cuda.current_stream().wait_stream(side)
    leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(leaf, teacher, backend=backend)
        value.backward()
    graph.replay()
    torch.cuda.synchronize()
    assert_close(value.detach(), expected[0].double(), 1e-6)
    assert_close(leaf.grad, expected[1].double(), 1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
@calls(of_family=1)
@HALF_AND_SINGLE
def test_second_device(loss, backend, dtype):
    torch.cuda.set_device(0)
    student, teacher = student_and_teacher(dtype, "cuda:1")
    value, gradient = value_and_gradient(loss, student, teacher, backend=backend)
    assert value.device == gradient.device == torch.device("cuda:1") and value.isfinite()


@calls(of_family=1)
def test_compiled(loss, backend):
    student, teacher = student_and_teacher()
    compiled = torch.compile(lambda student: loss(student, teacher, backend=backend), fullgraph=True)
    ours, theirs = value_and_gradient(compiled, student), value_and_gradient(loss, student, teacher, backend=backend)
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) <= 1e-5
