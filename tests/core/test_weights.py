"""Weights of tokens and points in all losses that are divided by their sum: only ratios count, and no value is negative."""

import pytest
import torch
from support.numerics import features, value_and_gradient
from support.points import points

import lgf_kernels as lgf

S, T = features(2, 3, 4, 5, 6), features(2, 3, 4, 5, 7)
QUERIES, TARGETS, _ = points(2, 8, 3, 4, 5)

#: Loss -> its function of (student, weight, **options), and the shape of the weight.
LOSSES = {
    "lgf_kl": (lambda s, a, **o: lgf.lgf_kl_loss(s, T.to(s), token_weight=a, **o), (2, 2, 4, 5)),
    "lgf_kl both": (lambda s, a, **o: lgf.lgf_kl_loss(s, T, token_weight=a, direction="both", **o), (2, 2, 4, 5)),
    "patch_cosine": (lambda s, a, **o: lgf.patch_cosine_loss(s, T[..., :6], token_weight=a, **o), (2, 3, 4, 5)),
    "patch_cosine frames": (
        lambda s, a, **o: lgf.patch_cosine_loss(
            s, T[..., :6], token_weight=a, frame_weight=lgf.crepa_frame_weight(3), **o
        ),
        (2, 3, 4, 5),
    ),
    "points": (lambda s, a, **o: lgf.point_correspondence_loss(s, QUERIES, TARGETS, a, **o), (2, 8, 3)),
}
losses = pytest.mark.parametrize(("loss", "shape"), LOSSES.values(), ids=LOSSES.keys())
backends = pytest.mark.parametrize("backend", ["native", "portable", "reference"])


def ordinary(shape) -> torch.Tensor:
    """Return weights that every floating type holds exactly, some of them 0."""
    return torch.randint(0, 8, shape).float()


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@losses
@backends
@pytest.mark.parametrize(
    ("exponent", "dtype"),
    [(125, torch.float32), (-149, torch.float32), (-3, torch.float32), (-900, torch.float64), (1000, torch.float64)],
)
def test_the_size_of_all_weights_changes_no_bit_of_a_mean(loss, shape, backend, exponent, dtype):
    weight = ordinary(shape)
    scaled = (weight.double() * 2.0**exponent).to(dtype)
    assert scaled.any() and scaled.isfinite().all()
    ours = value_and_gradient(loss, S, scaled, backend=backend)
    assert ours[0].isfinite() and ours[1].any()
    assert same(ours, value_and_gradient(loss, S, weight, backend=backend))


@losses
@backends
def test_ordinary_weights_give_the_bits_of_the_formula(loss, shape, backend):
    weight = torch.rand(shape)
    used = weight
    if shape == LOSSES["points"][1]:
        used = weight * (QUERIES[..., :1] != torch.arange(3))
    value = loss(S, weight, backend=backend)
    formula = loss(S, weight, backend=backend, reduction="none").sum() / used.sum()
    torch.testing.assert_close(value, formula, rtol=3e-7, atol=0)


@losses
@backends
@pytest.mark.parametrize("bad", [torch.inf, torch.nan, None])
def test_weights_without_a_ratio_give_nan(loss, shape, backend, bad):
    weight = torch.zeros(shape) if bad is None else torch.full(shape, bad)
    assert loss(S, weight, backend=backend).isnan()
    if bad is not None:
        weight = ordinary(shape).masked_fill_(torch.arange(weight.numel()).view(shape) % 5 == 0, bad)
        assert loss(S, weight, backend=backend).isnan()


@losses
@backends
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_sums_count_the_weights_as_they_are(loss, shape, backend, reduction):
    weight = ordinary(shape)
    single, double = (loss(S, w, backend=backend, reduction=reduction) for w in (weight, 2 * weight))
    assert torch.equal(2 * single, double)


@losses
@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_compiled_and_mapped_calls_count_ratios_too(loss, shape, backend):
    weights = torch.stack([ordinary(shape) * 2.0**125, ordinary(shape) * 2.0**-149])
    each = torch.stack([loss(S, weight, backend=backend) for weight in weights])
    torch.compiler.reset()
    compiled = torch.compile(lambda s, a: loss(s, a, backend=backend), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.stack([compiled(S, weight) for weight in weights]), each)
    torch.testing.assert_close(torch.vmap(lambda a: loss(S, a, backend=backend))(weights), each)


@losses
@backends
def test_negative_weights_are_refused_by_every_backend_with_the_value_that_was_given(loss, shape, backend):
    weight = 8 * torch.ones(shape)
    weight[0, -1, -1] = -3
    with pytest.raises(ValueError, match=r"weight` must be >= 0 everywhere, got a minimum of -3\. Clamp it"):
        loss(S, weight, backend=backend)


def test_negative_weights_of_float8_are_refused():
    with pytest.raises(ValueError, match="minimum of -1"):
        lgf.lgf_kl_loss(S, T, token_weight=torch.full((2, 2, 4, 5), -1.0).to(torch.float8_e4m3fn))


@losses
def test_the_reference_reads_no_values_where_there_are_none(loss, shape):
    weight = -torch.ones(shape)
    torch.compiler.reset()
    compiled = torch.compile(lambda s, a: loss(s, a, backend="reference"), fullgraph=True, backend="aot_eager")
    assert compiled(S, weight).shape == ()
    assert torch.vmap(lambda a: loss(S, a, backend="reference"))(weight[None]).shape == (1,)


@losses
@backends
@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.uint16, torch.uint64, torch.int8, torch.int64, torch.float8_e4m3fn, torch.bfloat16],
    ids=str,
)
def test_weights_of_every_real_type(loss, shape, backend, dtype):
    weight = torch.randint(0, 2, shape)
    assert torch.equal(loss(S, weight.to(dtype), backend=backend), loss(S, weight.float(), backend=backend))


def test_the_reference_refuses_negative_weights_of_frames_and_queries_outside():
    with pytest.raises(ValueError, match=r"`pair_weight` must be >= 0 everywhere, got a minimum of -1"):
        lgf.token_relation_loss(S, T, pair_weight=-torch.ones(3, 3), backend="reference")
    with pytest.raises(ValueError, match=r"`frame_weight` must be >= 0 everywhere, got a minimum of -1"):
        lgf.patch_cosine_loss(S, S, frame_weight=-torch.ones(3, 3), backend="reference")
    outside = torch.tensor([[[0, 9.0, 0]]]).expand(2, 1, 3)
    with pytest.raises(ValueError, match=r"point_correspondence: `queries` must be points"):
        lgf.point_correspondence(S, outside, backend="reference")
    with pytest.raises(ValueError, match=r"point_correspondence_loss: `queries` must be points"):
        lgf.point_correspondence_loss(S, outside, torch.zeros(2, 1, 3, 2), backend="reference")
