"""Patch cosine on a GPU: every backend against the oracle in float64 on the same device."""

import pytest
import torch
from support.cuda import against_reference, backends, dtypes
from support.numerics import features, value_and_gradient

import lgf_kernels as lgf

patch_backends = backends("patch_cosine")
loss = lgf.patch_cosine_loss


def inputs(shape, channels, dtype=torch.float32):
    teachers = [features(*shape, C, dtype=dtype).cuda() for C in channels]
    return features(*shape, sum(channels), dtype=dtype).cuda(), teachers


def frame_weight(frames):
    return lgf.crepa_frame_weight(frames, device="cuda")


@patch_backends
@dtypes
@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_patch_cosine(backend, reduction, frames, dtype):
    student, teachers = inputs((2, 3, 9, 19), (24, 16), dtype)
    options = dict(frame_weight=frame_weight(3)) if frames else {}
    if reduction == "none":
        options["upstream"] = torch.randn(2, 3, 9, 19, dtype=torch.float64, device="cuda")
    against_reference(loss, student, teachers, backend, reduction=reduction, **options)


@patch_backends
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((7,), (5, 1)), ((2, 3, 1, 5), (17, 300)), ((1, 2, 30, 45), (1024, 256)), ((1, 49, 8, 8), (768,))],
    ids=str,
)
def test_ragged_patches(backend, shape, channels):
    student, teachers = inputs(shape, channels)
    against_reference(loss, student, teachers, backend)
    if len(shape) > 1:
        against_reference(loss, student, teachers, backend, frame_weight=frame_weight(shape[1]))


@patch_backends
@pytest.mark.parametrize("frames", [False, True])
def test_two_runs_are_bitwise_equal(backend, frames):
    student, teachers = inputs((1, 13, 30, 45), (64, 32), torch.bfloat16)
    options = dict(frame_weight=frame_weight(13)) if frames else {}
    runs = [value_and_gradient(loss, student, teachers, backend=backend, **options) for _ in range(2)]
    assert all(map(torch.equal, *runs))
