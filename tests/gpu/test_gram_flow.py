"""Every backend for CUDA tensors, against the oracle in float64 on the same device."""

import pytest
import torch
from support.numerics import assert_close, backends_of, double, features, relative_error, value_and_gradient

import lgf_kernels as lgf

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}
lgf_backends = pytest.mark.parametrize("backend", backends_of("lgf_kl", "cuda"))
relation_backends = pytest.mark.parametrize("backend", backends_of("token_relation", "cuda"))
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def full_precision_products():
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


def against_reference(loss, student, others, backend, close=assert_close, **options):
    ours = value_and_gradient(loss, student, others, backend=backend, **options)
    truth = value_and_gradient(loss, student.double(), double(others), backend="reference", **options)
    assert_close(ours[0], truth[0], 1e-12 if student.dtype == torch.float64 else 1e-5)
    close(ours[1], truth[1], TOLERANCE[student.dtype])


def close_but_for_jumps(gradient, truth, tolerance):
    """The gradient of token relations jumps where a difference passes 0 or the margin. Rounding puts some pairs of millions on
    the other side, and each moves the gradients of its two tokens."""
    errors = torch.linalg.vector_norm(gradient.double() - truth, dim=-1)
    sizes = torch.linalg.vector_norm(truth, dim=-1)
    assert (errors > 2 * tolerance * sizes.mean()).double().mean() <= 0.05
    assert_close(gradient, truth, 1e-2)


@lgf_backends
@dtypes
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("divergence", ["kl", "l2"])
@pytest.mark.parametrize("boundary", ["exclude", "zero"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_lgf_kl(backend, similarity, boundary, divergence, direction, dtype):
    student = 0.3 * features(2, 3, 9, 19, 40, dtype=dtype).cuda()
    teachers = [0.3 * features(2, 3, 9, 19, C, dtype=dtype).cuda() for C in (40, 17)]
    a = torch.rand(2, 2, 9, 19, device="cuda")
    against_reference(
        lgf.lgf_kl_loss, student, teachers, backend, similarity=similarity, boundary=boundary, divergence=divergence,
        direction=direction, token_weight=a, teacher_weights=[0.3, 0.9],
    )  # fmt: skip


@lgf_backends
@dtypes
def test_from_logits(backend, dtype):
    student = features(1, 3, 9, 19, 40, dtype=dtype).cuda()
    cache = lgf.local_gram_flow(features(1, 3, 9, 19, 30).cuda()).half()
    against_reference(lgf.lgf_kl_loss_from_logits, student, cache, backend)


@lgf_backends
@pytest.mark.parametrize("window", range(1, 16, 2))
@pytest.mark.parametrize("shape", [(1, 3, 21, 37, 64), (2, 2, 1, 9, 17), (1, 2, 5, 3, 300)], ids=str)
def test_windows_and_ragged_shapes(backend, shape, window):
    student, teacher = features(*shape).cuda(), features(*shape[:4], 24).cuda()
    against_reference(lgf.lgf_kl_loss, student, [teacher], backend, window=window, direction="both")


@lgf_backends
@dtypes
def test_local_gram_flow(backend, dtype):
    student = features(2, 3, 9, 19, 40, dtype=dtype).cuda()
    upstream = torch.randn(2, 2, 9, 19, 49, dtype=torch.float64, device="cuda")
    ours = value_and_gradient(lgf.local_gram_flow, student, backend=backend, upstream=upstream)
    truth = value_and_gradient(lgf.local_gram_flow, student.double(), backend="reference", upstream=upstream)
    assert_close(ours[0], truth[0], 1e-12 if dtype == torch.float64 else 1e-5)
    assert_close(ours[1], truth[1], TOLERANCE[dtype])


@lgf_backends
def test_strides_are_taken_as_they_are(backend):
    student = features(2, 40, 3, 9, 19).cuda().permute(0, 2, 3, 4, 1)
    sliced = features(2, 4, 10, 20, 64).cuda()[:, 1:, 1:, 1:, 8:48]
    for one, other in ((student, sliced), (sliced, student)):
        against_reference(lgf.lgf_kl_loss, one, [other], backend)


@pytest.mark.skipif("triton" not in backends_of("lgf_kl", "cuda"), reason="Triton kernels do not run here")
def test_a_new_resolution_compiles_nothing(monkeypatch):
    import triton

    def run(T, H, W):
        student, teacher = features(1, T, H, W, 32).cuda(), features(1, T, H, W, 32).cuda()
        value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend="triton")

    run(3, 16, 16)
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **kernel: compiled.append(kernel["repr"]))
    for T, H, W in ((2, 16, 16), (5, 9, 19), (3, 1, 33), (4, 17, 1)):
        run(T, H, W)
    assert not compiled


@pytest.mark.skipif("triton" not in backends_of("lgf_kl", "cuda"), reason="Triton kernels do not run here")
@pytest.mark.slow
def test_autotuning_changes_no_answer(monkeypatch):
    monkeypatch.setenv("LGF_AUTOTUNE", "1")
    student, teacher = features(1, 3, 30, 45, 64, dtype=torch.bfloat16).cuda(), features(1, 3, 30, 45, 64).cuda()
    against_reference(lgf.lgf_kl_loss, student, [teacher], "triton")


@relation_backends
@dtypes
@pytest.mark.parametrize("form", ["moalign", "videorepa-temporal"])
def test_token_relation(backend, form, dtype):
    student, teacher = features(2, 4, 70, 40, dtype=dtype).cuda(), features(2, 4, 70, 24, dtype=dtype).cuda()
    loss = lgf.TokenRelationLoss(form)
    weight = loss.pair_weight(4, "cuda")
    against_reference(
        lambda s, t, **o: lgf.token_relation_loss(s, t, pair_weight=weight, margin=loss.margin, **o),
        student, teacher, backend, close_but_for_jumps,
    )  # fmt: skip


@relation_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 24, 150, 256, 768), (2, 3, 700, 128, 64), (1, 70, 5, 136, 8), (1, 2, 130, 520, 16)], ids=str
)
def test_token_relation_tiles(backend, shape, dtype):
    """Frames larger and smaller than tiles, channels for one to several products side by side."""
    *tokens, C, D = shape
    student, teacher = features(*tokens, C, dtype=dtype).cuda(), features(*tokens, D, dtype=dtype).cuda()
    weight = lgf.moalign_pair_weight(tokens[1], device="cuda")
    upstream = torch.tensor(2.0**16, device="cuda")  # to where float16 has all its digits
    options = dict(pair_weight=weight, upstream=upstream)
    against_reference(lgf.token_relation_loss, student, teacher, backend, close_but_for_jumps, **options)


@pytest.mark.parametrize("backend", [name for name in backends_of("token_relation", "cuda") if name != "portable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_same_features_differ_by_nothing(backend, dtype):
    """What the interpreter and the model of a GPU cannot show: whether compilers fuse one product and not the other."""
    student, weight = features(1, 3, 150, 64, dtype=dtype).cuda(), torch.ones(3, 3, device="cuda")
    value, gradient = value_and_gradient(
        lgf.token_relation_loss, student, student.clone(), pair_weight=weight, backend=backend
    )
    assert value == 0 and not gradient.any()


@relation_backends
def test_token_relation_in_panels(backend, monkeypatch):
    student, teacher = features(1, 4, 600, 64).bfloat16().cuda(), features(1, 4, 600, 40).bfloat16().cuda()
    weight = torch.rand(4, 4, device="cuda")
    whole = value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=weight, backend=backend)
    monkeypatch.setenv("LGF_SCRATCH_MIB", "2")
    cut = value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=weight, backend=backend)
    assert torch.equal(cut[0], whole[0])
    assert_close(cut[1], whole[1].double(), 4e-3)  # added up in another order before it is rounded


def losses(backend, device="cuda"):
    student, teacher = features(1, 3, 9, 19, 40).to(device), features(1, 3, 9, 19, 24).to(device)
    weight = lgf.moalign_pair_weight(3, device=device)
    return student, [
        lambda s: lgf.lgf_kl_loss(s, [teacher, teacher], direction="both", backend=backend),
        lambda s: lgf.token_relation_loss(s, teacher, pair_weight=weight, margin=0.1, backend=backend),
        lambda s: lgf.local_gram_flow(s, backend=backend).square().mean(),
    ]


@lgf_backends
def test_the_host_never_waits(backend):
    student, functions = losses(backend)
    for loss in functions:
        value_and_gradient(loss, student)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            value_and_gradient(loss, student)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@lgf_backends
def test_cuda_graph(backend):
    student, functions = losses(backend)
    for loss in functions:
        expected = value_and_gradient(loss, student)
        leaf = student.detach().requires_grad_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss(leaf).backward()
        torch.cuda.current_stream().wait_stream(side)
        leaf.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = loss(leaf)
            value.backward()
        graph.replay()
        torch.cuda.synchronize()
        assert_close(value.detach(), expected[0].double(), 1e-6)
        assert_close(leaf.grad, expected[1].double(), 1e-6)


@lgf_backends
def test_two_runs_are_bitwise_equal(backend):
    student, functions = losses(backend)
    for loss in functions:
        first, second = value_and_gradient(loss, student), value_and_gradient(loss, student)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@lgf_backends
def test_compiled(backend):
    student, functions = losses(backend)
    for loss in functions:
        ours = value_and_gradient(torch.compile(loss, fullgraph=True), student)
        for a, b in zip(ours, value_and_gradient(loss, student), strict=True):
            assert relative_error(a, b) <= 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
@lgf_backends
def test_second_device(backend):
    torch.cuda.set_device(0)
    student, functions = losses(backend, "cuda:1")
    for loss in functions:
        value, gradient = value_and_gradient(loss, student)
        assert value.device == gradient.device == torch.device("cuda:1") and value.isfinite()
