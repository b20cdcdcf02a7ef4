"""The CUDA kernels of Local Gram Flow as nvcc compiles them, on the model of a GPU (tests/models/ptx), against the oracle."""

import re

import pytest
import torch
from models.cuda.launch import against_reference
from models.ptx.mistakes import mistakes, must_be_noticed
from support.numerics import assert_close, features, value_and_gradient

import lgf_kernels as lgf

HALF = torch.bfloat16
FAR = {"direction": "both", "similarity": "dot", "divergence": "l2", "boundary": "zero"}
LOW, ANY = ("BandForward 4", "BandBackward 4"), ("Norms", "AnyForward", "AnyBackward")
#: So many multiprocessors that low tiles give all of them work.
MANY = {"multiprocessors": 108}
#: Kernels without their type, type, shape of the student, channels of the teachers, options, and the device.
CASES = {
    "tensor cores": (LOW, HALF, (1, 3, 9, 19, 40), (24, 8), {}, MANY),
    "other options": (LOW, HALF, (1, 2, 9, 5, 40), (24,), FAR, MANY),
    "two passes": (LOW, HALF, (1, 2, 3, 5, 264), (16,), {"direction": "backward"}, MANY),
    "one number a token": (LOW, HALF, (1, 2, 5, 4, 16), (8,), {"reduction": "none"}, MANY),
    "plain": (ANY, torch.float32, (2, 2, 4, 5, 9), (7,), {"direction": "both"}, {}),
    "plain, a large window": (ANY, torch.float32, (1, 2, 5, 6, 5), (3,), {"window": 11}, {}),
}
MORE_CASES = {
    "float64": (ANY, torch.float64, (1, 3, 9, 19, 9), (7,), {"window": 3}, {}),
    "odd channels": (ANY, HALF, (1, 2, 9, 9, 17), (9,), {}, MANY),
    "float16": (LOW, torch.float16, (1, 3, 9, 19, 40), (24,), {"direction": "both"}, MANY),
    "8 rows": (
        ("BandForward 8", "BandBackward 8"),
        HALF,
        (1, 2, 16, 16, 72),
        (32,),
        {"direction": "both"},
        {"shared": 228},
    ),
    "16 rows": (("BandForward 16", "BandBackward 8"), HALF, (1, 2, 16, 16, 72), (32,), {}, {"shared": 164}),
    "8 rows, float16": (
        ("BandForward 8", "BandBackward 8"),
        torch.float16,
        (1, 2, 16, 16, 72),
        (32,),
        {},
        {"shared": 228},
    ),
}


def upstream_of(shape: tuple[int, ...], reduction: str = "mean") -> torch.Tensor:
    """Return an upstream gradient that takes a small one to where float16 has all its digits."""
    return 1024 * torch.ones((shape[0], shape[1] - 1, *shape[2:4]) if reduction == "none" else (), dtype=torch.float64)


def run(dtype, shape, teacher_channels, **options):
    student, *teachers = (features(*shape[:4], channels, dtype=dtype) for channels in (shape[4], *teacher_channels))
    options.setdefault("upstream", upstream_of(shape, options.get("reduction", "mean")))
    against_reference(lgf.lgf_kl_loss, student, teachers, **options)


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)])
@pytest.mark.parametrize("architecture", ["80", pytest.param("90a", marks=pytest.mark.slow)])
def test_losses(nvcc_model, architecture, case):
    kernels, dtype, shape, teacher_channels, options, device = (CASES | MORE_CASES)[case]
    launcher = nvcc_model(architecture, **device)
    run(dtype, shape, teacher_channels, **options)
    assert {re.sub(r"<\w+(?:, (\d+))?>", r" \1", kernel).strip() for kernel in launcher.kernels} == set(kernels)


@pytest.mark.parametrize("architecture", ["80", pytest.param("90a", marks=pytest.mark.slow)])
def test_cached_logits(nvcc_model, architecture):
    nvcc_model(architecture)
    shape = (1, 3, 9, 19, 40)
    cache = lgf.local_gram_flow(features(*shape[:4], 30), backend="reference").half()
    against_reference(lgf.lgf_kl_loss_from_logits, features(*shape, dtype=HALF), [cache], upstream=upstream_of(shape))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_local_gram_flow(nvcc_model, architecture):
    nvcc_model(architecture)
    f = features(1, 3, 9, 19, 40, dtype=HALF)
    upstream = torch.randn(1, 2, 9, 19, 49, dtype=torch.float64)
    ours = value_and_gradient(lgf.local_gram_flow, f, backend="native", upstream=upstream)
    truth = value_and_gradient(lgf.local_gram_flow, f.double(), backend="reference", upstream=upstream)
    assert_close(ours[0].double(), truth[0], 2e-6)
    assert_close(ours[1], truth[1], 4e-3)


@pytest.mark.slow
def test_infinity_becomes_nan(nvcc_model):
    nvcc_model("80")
    student, teacher = (features(1, 3, 9, 19, 40, dtype=HALF) for _ in range(2))
    student[0, 1, 4, 5, 3] = float("inf")
    value, gradient = value_and_gradient(lgf.lgf_kl_loss, student, [teacher], backend="native")
    assert value.isnan() and gradient.isnan().any()


MISTAKES = {
    "no barriers": ("80", r"bar\.sync", "// bar.sync", "race"),
    "a chunk is not waited for": ("80", r"cp\.async\.wait_group 1", "cp.async.wait_group 2", "copy is under way"),
}
MORE = {
    "windows are not waited for": ("80", r"cp\.async\.wait_group 0", "cp.async.wait_group 1", "copy is under way"),
    "not transposed": ("80", r"x4\.trans", "x4", "error"),
    "all transposed": ("80", r"m8n8\.x4\.shared", "m8n8.x4.trans.shared", "error"),
    "rounded to another type": ("80", r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32", "error"),
}


@mistakes(MISTAKES, MORE)
def test_mistakes_are_noticed(nvcc_model, mistake):
    must_be_noticed(nvcc_model, mistake, lambda: run(HALF, (1, 2, 3, 5, 264), (72, 8), direction="both"))
