"""Local Gram Flow logits on every backend against the oracle, values and gradients."""

import pytest
import torch
from support.numerics import against_reference, backends_of, features, rounding, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf

pytestmark = pytest.mark.parametrize("backend", backends_of("local_gram_flow"))


@every_pair(
    shape=((1, 2, 1, 1, 1), (2, 3, 4, 19, 9), (1, 3, 17, 2, 33)), window=(1, 3, 7, 15), similarity=("cosine", "dot"),
    direction=("forward", "backward"),
)  # fmt: skip
def test_values_and_gradients(backend, shape, window, similarity, direction):
    f = features(*shape)
    upstream = torch.randn(*shape[:1], shape[1] - 1, *shape[2:4], window**2, dtype=torch.float64)
    options = dict(window=window, similarity=similarity, direction=direction, upstream=upstream)
    # The cosine of single channels is 1 or -1 and its gradient 0: all that is left is rounding.
    absolute = 1e-6 if shape[-1] == 1 and similarity == "cosine" else 0.0
    against_reference(lgf.local_gram_flow, f, backend=backend, absolute=absolute, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [1, 3])
def test_channels_first(backend, window, dtype):
    f = features(2, 5, 3, 4, 6, dtype=dtype).permute(0, 2, 3, 4, 1)
    upstream = torch.randn(2, window**2, 4, 6, 2, dtype=torch.float64).permute(0, 4, 2, 3, 1)
    options = dict(window=window, similarity="dot", upstream=upstream)
    rounded = 1e-5 if dtype == torch.float32 else rounding(dtype, backend)
    against_reference(lgf.local_gram_flow, f, backend=backend, gradient=rounded, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(backend, dtype):
    f = features(1, 3, 5, 6, 40, dtype=dtype)
    value, rounded = (1e-12, 1e-12) if dtype == torch.float64 else (1e-6, rounding(dtype, backend))
    against_reference(lgf.local_gram_flow, f, backend=backend, value=value, gradient=rounded)


def test_outside_is_zero_and_gives_no_gradient(backend):
    f = features(1, 2, 4, 5, 6)
    mask = lgf.local_window_mask(4, 5, 7)
    broken = torch.zeros(4, 5, dtype=torch.bool)
    broken[0, 0] = broken[-1, -1] = True
    f[0, 0, broken] = torch.nan
    z = lgf.local_gram_flow(f, backend=backend)[0, 0]
    assert (z[~mask] == 0).all()
    assert torch.equal(z.isnan(), mask & broken[:, :, None])
    f = features(1, 2, 4, 5, 6)
    for outside in (1.0, torch.nan):
        upstream = torch.where(mask, 0.0, outside).expand(1, 1, -1, -1, -1)
        _, gradient = value_and_gradient(lgf.local_gram_flow, f, backend=backend, upstream=upstream)
        assert (gradient == 0).all()


def test_expanded_upstream_gradient(backend):
    f = features(1, 3, 4, 5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(lgf.local_gram_flow(f, backend=backend).sum(), f)
    (truth,) = torch.autograd.grad(lgf.local_gram_flow(f, backend="reference").sum(), f)
    torch.testing.assert_close(gradient, truth)
