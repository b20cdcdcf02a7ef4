"""Local Gram Flow on a GPU: every backend against the oracle in float64 on the same device."""

import pytest
import torch
from support.cuda import TOLERANCE, against_reference, backends, dtypes
from support.numerics import assert_close, backends_of, features, value_and_gradient

import lgf_kernels as lgf

lgf_backends = backends("lgf_kl")


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
