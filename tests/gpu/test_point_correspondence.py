"""Point correspondence on a GPU: every backend against the oracle in float64 on the same device."""

import pytest
import torch
from support.cuda import TOLERANCE, against_reference, backends, dtypes
from support.numerics import assert_close, features, value_and_gradient
from support.points import points

import lgf_kernels as lgf

points_backends = backends("point_correspondence")


def loss(student, tracks, **options):
    return lgf.point_correspondence_loss(student, *tracks, **options)


def tracks(*sizes, **options):
    return [tensor.cuda() for tensor in points(*sizes, **options)]


@points_backends
@dtypes
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("distance", ["huber", "l1"])
def test_point_correspondence(backend, distance, window, dtype):
    """On tokens, because between them Triton rounds the features of a point in half precision before it multiplies them."""
    student, on_tokens = features(2, 3, 9, 19, 40, dtype=dtype).cuda(), tracks(2, 37, 3, 9, 19, on_tokens=True)
    value = 1e-4 if dtype in (torch.bfloat16, torch.float16) else 1e-5
    against_reference(loss, student, on_tokens, backend, value=value, window=window, distance=distance, temperature=0.3)


@points_backends
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 9, 17), (1, 2, 21, 37, 64), (1, 3, 5, 3, 300), (1, 2, 30, 45, 768)], ids=str
)
@pytest.mark.parametrize("count", [1, 37, 200])
def test_windows_and_ragged_points(backend, count, shape):
    """Fewer points and tokens than a tile and more, fewer channels than a block and more; queries between tokens."""
    student, anywhere = features(*shape).cuda(), tracks(1, count, *shape[1:4])
    for window in (None, 1):
        against_reference(loss, student, anywhere, backend, gradient=2e-5, window=window, temperature=0.3)


@points_backends
@dtypes
def test_places_of_points(backend, dtype):
    student, (queries, *_) = features(1, 3, 9, 19, 40, dtype=dtype).cuda(), tracks(1, 50, 3, 9, 19, on_tokens=True)
    upstream = torch.randn(1, 50, 3, 2, dtype=torch.float64, device="cuda")
    options = dict(temperature=0.3, upstream=upstream)
    ours = value_and_gradient(lgf.point_correspondence, student, queries, backend=backend, **options)
    truth = value_and_gradient(lgf.point_correspondence, student.double(), queries, backend="reference", **options)
    assert_close(ours[0], truth[0], TOLERANCE[dtype])
    assert_close(ours[1], truth[1], TOLERANCE[dtype])


@points_backends
def test_points_in_panels(backend, monkeypatch):
    """With one frame's coefficients at a time the sum over the frames is rounded differently, and nothing else."""
    student, on_tokens = features(1, 4, 30, 45, 64).bfloat16().cuda(), tracks(1, 300, 4, 30, 45, on_tokens=True)
    whole = value_and_gradient(loss, student, on_tokens, backend=backend)
    monkeypatch.setenv("LGF_SCRATCH_MIB", "1")
    cut = value_and_gradient(loss, student, on_tokens, backend=backend)
    assert torch.equal(cut[0], whole[0])
    assert_close(cut[1], whole[1].double(), 4e-3)
