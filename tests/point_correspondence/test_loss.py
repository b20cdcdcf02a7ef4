"""Every backend of point correspondence against the oracle: every option, ragged shapes, types, extremes, what is kept."""

import pytest
import torch
import torch.nn.functional as F
from support.numerics import assert_close, backends_of, features, relative_error, rounding, value_and_gradient
from support.pairs import every_pair, every_value
from support.points import points

import lgf_kernels as lgf

pytestmark = pytest.mark.parametrize("backend", backends_of("point_correspondence"))

OPTIONS = {"distance": ("huber", "l1"), "window": (None, 2), "reduction": ("mean", "sum", "none")}

#: (B, N, T, H, W, C): single rows, columns, channels and points, more than tiles hold and no multiples of them.
SHAPES = [
    (1, 1, 2, 1, 1, 1),
    (1, 5, 2, 1, 9, 3),
    (2, 7, 3, 9, 1, 17),
    (1, 3, 4, 2, 3, 5),
    (2, 70, 2, 5, 37, 8),
    (1, 130, 2, 17, 16, 70),
    (1, 4, 2, 3, 4, 600),
    (3, 1, 5, 7, 6, 31),
]


def against_reference(backend, f, queries, *rest, loss=lgf.point_correspondence_loss, tolerance=1e-5, **options):
    """Loss and gradient of a backend, against the oracle in float64 on the same inputs."""
    shape = loss(f, queries, *rest, backend="reference", **options).shape
    upstream = torch.randn(shape, dtype=torch.float64)
    value, gradient = value_and_gradient(loss, f, queries, *rest, backend=backend, upstream=upstream, **options)
    truth, true_gradient = value_and_gradient(
        loss, f.double(), queries, *rest, backend="reference", upstream=upstream, **options
    )
    assert value.dtype == (torch.float64 if f.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == f.dtype
    assert_close(value, truth, tolerance, absolute=tolerance * 1e-2)
    assert_close(gradient, true_gradient, tolerance, absolute=tolerance * 1e-2)


@every_pair(dtype=(torch.float32, torch.float64), options=OPTIONS)
def test_every_option(backend, dtype, options):
    f = features(2, 4, 5, 6, 7, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    against_reference(
        backend, f, *points(2, 9, 4, 5, 6), temperature=0.3, delta=0.8, tolerance=tolerance, **options
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 1, 3])
def test_places(backend, window):
    queries, _, _ = points(2, 9, 4, 5, 6)
    f = features(2, 4, 5, 6, 7)
    against_reference(backend, f, queries, loss=lgf.point_correspondence, temperature=0.2, window=window)


@every_value(shape=SHAPES, window=(None, 1, 2))
def test_ragged_shapes(backend, window, shape):
    B, N, T, H, W, C = shape
    against_reference(
        backend, features(B, T, H, W, C), *points(B, N, T, H, W), window=window, temperature=0.2, tolerance=2e-5
    )


def test_queries_on_tokens_in_corners_and_alike(backend):
    queries, targets, weight = points(1, 12, 3, 4, 5, on_tokens=True)
    queries[0, :4, 1:] = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 2.5], [1.5, 4.0]])
    queries[0, 4:] = queries[0, 4]
    against_reference(backend, features(1, 3, 4, 5, 6), queries, targets, weight)


def eager(f, queries, targets, weight, tau=0.05):
    """What one would write in PyTorch, in the type of the features throughout; a sum of squares."""
    B = len(f)
    normalised = F.normalize(f, dim=-1, eps=1e-6)
    t, y, x = queries.long().unbind(-1)
    q = normalised[torch.arange(B)[:, None], t, y, x]
    z = torch.einsum("bnc,bthwc->bnthw", q, normalised) / tau
    p = z.flatten(3).softmax(-1).view_as(z)
    rows, columns = (torch.arange(n, dtype=f.dtype) for n in f.shape[2:4])
    places = torch.stack([(p.sum(4) * rows).sum(-1), (p.sum(3) * columns).sum(-1)], -1)
    return (weight * ((places - targets.to(f.dtype)) ** 2).sum(-1) / 2).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_at_most_twice_as_far_off_as_eager(backend, dtype):
    f = features(1, 3, 9, 10, 64, dtype=torch.float64)
    queries, targets, weight = points(1, 40, 3, 9, 10, on_tokens=True)
    weight = torch.where(queries[..., :1] == torch.arange(3), 0, weight)
    f = (f + 0.5 * f[:, :1]).to(dtype)
    options = dict(reduction="sum", delta=100.0)
    truth = value_and_gradient(
        lgf.point_correspondence_loss, f.double(), queries, targets, weight, backend="reference", **options
    )
    ours = value_and_gradient(lgf.point_correspondence_loss, f, queries, targets, weight, backend=backend, **options)
    theirs = value_and_gradient(eager, f, queries, targets, weight.to(dtype))
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert relative_error(our, true) <= max(2 * relative_error(their, true), 5e-7)
    if dtype != torch.float32:
        assert relative_error(ours[0], truth[0]) <= (1e-4 if backend == "triton" else 1e-6)
        assert relative_error(ours[1], truth[1]) <= 2 * rounding(dtype, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_between_tokens(backend, dtype):
    """On a GPU the features of a point between tokens are rounded before they are multiplied; elsewhere they are not."""
    f, tracks = features(1, 3, 9, 10, 64, dtype=dtype), points(1, 40, 3, 9, 10)
    ours = value_and_gradient(lgf.point_correspondence_loss, f, *tracks, backend=backend)
    truth = value_and_gradient(lgf.point_correspondence_loss, f.double(), *tracks, backend="reference")
    assert relative_error(ours[0], truth[0]) <= (1e-3 if backend == "triton" else 1e-6)
    assert relative_error(ours[1], truth[1]) <= 2 * rounding(dtype, backend)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("temperature", [1e-3, 0.05, 10.0])
def test_temperatures(backend, temperature, window):
    f = features(1, 3, 6, 7, 32)
    against_reference(
        backend,
        f,
        *points(1, 20, 3, 6, 7),
        temperature=temperature,
        window=window,
        tolerance=1e-6 / min(temperature, 0.05),
    )


def test_the_first_of_equal_similarities_is_the_middle_of_the_window(backend):
    """In the same tile and in another: 600 tokens are alike."""
    f = torch.zeros(1, 2, 1, 600, 2)
    f[..., 0] = 1
    places = lgf.point_correspondence(f, torch.zeros(1, 1, 3), window=2, backend=backend)
    torch.testing.assert_close(places[0, 0], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scales(backend, scale):
    against_reference(backend, scale * features(1, 3, 6, 7, 12), *points(1, 20, 3, 6, 7), temperature=0.3)


@pytest.mark.parametrize("norm", [0.0, 5e-7, 2e-6])
def test_vanishing_vectors(backend, norm):
    """Below a norm of 1e-6 a vector is divided by 1e-6, a constant: its gradient loses the projection."""
    f = features(1, 3, 5, 6, 8)
    f[0, 1, 2, 3] *= norm / f[0, 1, 2, 3].norm()
    queries, targets, weight = points(1, 9, 3, 5, 6)
    queries[0, 0] = torch.tensor([1.0, 2.0, 3.0])
    against_reference(backend, f, queries, targets, weight, temperature=0.3)


@every_pair(bad=(torch.nan, torch.inf, -torch.inf), window=(None, 1), at=("a query", "a frame"))
def test_not_a_number_in_is_not_a_number_out(backend, at, window, bad):
    f = features(1, 3, 6, 17, 8)
    queries, targets, _ = points(1, 30, 3, 6, 17)
    queries[..., 0] = torch.arange(30) % 2
    queries[0, :4, 0] = 0
    queries[0, :4, 1:] = torch.tensor([[3.0, 5.0], [2.0, 5.0], [3.0, 4.0], [3.0, 4.5]])
    f[0, 0 if at == "a query" else 2, 3, 5, 3] = bad
    losses = lgf.point_correspondence_loss(f, queries, targets, window=window, reduction="none", backend=backend)[0]
    y, x = queries[0, :, 1], queries[0, :, 2]
    if at == "a query":
        hit = (queries[0, :, 0] == 0) & ((y - 3).abs() < 1) & ((x - 5).abs() < 1)
        assert hit[0] and not hit[1] and not hit[2] and hit[3] and hit.sum() < 10
        expected = hit[:, None].expand(30, 3).clone()
        expected[queries[0, :, 0] == 1, 0] = True  # found in the frame of the broken token
    else:
        expected = torch.zeros(30, 3, dtype=torch.bool)
        expected[:, 2] = True
    expected[torch.arange(30), queries[0, :, 0].long()] = False
    assert torch.equal(losses.isnan(), expected) and not losses.isinf().any()
    value, gradient = value_and_gradient(
        lgf.point_correspondence_loss, f, queries, targets, window=window, backend=backend
    )
    assert value.isnan() and gradient.isnan().any()


def test_what_no_weight_counts_is_not_looked_at(backend):
    """NaN targets of weight 0, and a frame of NaN in which no point is looked for."""
    f, (queries, targets, weight) = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    queries[..., 0] = torch.arange(9) % 2
    weight[..., 2] = 0
    plain = value_and_gradient(lgf.point_correspondence_loss, f, queries, targets, weight, backend=backend)
    counts = (weight != 0) & (queries[..., :1] != torch.arange(3))
    broken = targets.where(counts[..., None], torch.nan)
    again = value_and_gradient(lgf.point_correspondence_loss, f, queries, broken, weight, backend=backend)
    assert all(map(torch.equal, plain, again))
    f[0, 2, 1, 1] = torch.nan
    assert torch.equal(lgf.point_correspondence_loss(f, queries, broken, weight, backend=backend), plain[0])


@pytest.mark.parametrize("layout", ["channels first", "sliced", "every other", "expanded"])
def test_strided_inputs(backend, layout):
    if layout == "channels first":
        f = features(2, 3, 8, 5, 6).permute(0, 1, 3, 4, 2)
    elif layout == "sliced":
        f = features(2, 4, 6, 7, 12)[:, 1:, 1:, 1:, 2:10]
    elif layout == "every other":
        f = features(2, 3, 5, 6, 16)[..., ::2]
    else:
        f = features(1, 3, 5, 6, 8).expand(2, 3, 5, 6, 8)
    assert not f.is_contiguous()
    queries, targets, weight = points(2, 9, 3, 5, 6)
    against_reference(backend, f, queries, targets, weight, temperature=0.3)
    strided = (queries.transpose(0, 1).contiguous().transpose(0, 1), targets.flip(1).flip(1), weight.mT.contiguous().mT)
    same = lgf.point_correspondence_loss(f, *strided, backend=backend)
    assert torch.equal(same, lgf.point_correspondence_loss(f.contiguous(), queries, targets, weight, backend=backend))


@every_value(dtype=(torch.float32, torch.bfloat16, torch.int64), weights=(torch.bool, torch.float16, torch.int32))
def test_types_of_points(backend, dtype, weights):
    f = features(1, 3, 5, 6, 8)
    queries, targets, weight = points(1, 9, 3, 5, 6, on_tokens=True)
    against_reference(
        backend, f, queries.to(dtype), targets.to(dtype), (4 * weight).to(weights), temperature=0.3
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 1])
def test_two_runs_are_bitwise_equal(backend, window):
    """With many queries on few tokens: the order of their sums is no accident."""
    f, (queries, targets, weight) = features(1, 2, 5, 6, 32, dtype=torch.bfloat16), points(1, 90, 2, 2, 2)
    loss = lgf.point_correspondence_loss
    first, second = (
        value_and_gradient(loss, f, queries, targets, weight, window=window, backend=backend) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_queries(backend, reduction):
    f, points_of_none = features(2, 3, 4, 5, 6), (torch.zeros(2, 0, 3), torch.zeros(2, 0, 3, 2))
    options = dict(reduction=reduction, backend=backend)
    value, gradient = value_and_gradient(lgf.point_correspondence_loss, f, *points_of_none, **options)
    truth = lgf.point_correspondence_loss(f, *points_of_none, reduction=reduction, backend="reference")
    torch.testing.assert_close(value, truth, equal_nan=True)
    assert (gradient == 0).all()
    assert lgf.point_correspondence(f, points_of_none[0], backend=backend).shape == (2, 0, 3, 2)


def test_all_zero_weights_are_nothing_over_nothing(backend):
    f, (queries, targets, weight) = features(1, 3, 4, 5, 6), points(1, 4, 3, 4, 5)
    assert lgf.point_correspondence_loss(f, queries, targets, 0 * weight, backend=backend).isnan()
    value, gradient = value_and_gradient(
        lgf.point_correspondence_loss, f, queries, targets, 0 * weight, reduction="sum", backend=backend
    )
    assert value == 0 and (gradient == 0).all()


def test_gradients_are_tangents(backend):
    """Normalising makes the length of a token count for nothing, but where a query sampled it."""
    f, (queries, targets, weight) = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    queries[..., 0] = 0
    _, gradient = value_and_gradient(lgf.point_correspondence_loss, f, queries, targets, weight, backend=backend)
    along = F.cosine_similarity(gradient[0, 1:], f[0, 1:], dim=-1)
    assert along.abs().max() < 1e-5 and gradient[0, 1:].abs().max() > 1e-4


@pytest.mark.parametrize("window", [None, 2])
def test_what_is_kept_is_12_bytes_a_query_and_frame(backend, window):
    """16 with a window; the inputs are kept as they are."""
    f, (queries, targets, weight) = features(1, 3, 20, 20, 8, requires_grad=True), points(1, 50, 3, 20, 20)
    inputs, kept = {x.data_ptr() for x in (f, queries, targets, weight)}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        lgf.point_correspondence_loss(f, queries, targets, weight, window=window, backend=backend)
    own = sum(x.untyped_storage().nbytes() for x in kept if x.data_ptr() not in inputs)
    assert own == (12 if window is None else 16) * 50 * 3


def test_a_step_along_the_gradient_lowers_the_loss(backend):
    f, (queries, targets, weight) = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    loss = lgf.point_correspondence_loss
    value, gradient = value_and_gradient(loss, f, queries, targets, weight, backend=backend)
    lower = loss(f - 0.1 * gradient / gradient.norm(), queries, targets, weight, backend=backend)
    assert lower < value


def test_loss_without_gradient_is_the_same(backend):
    f, arguments = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    with_gradient, _ = value_and_gradient(lgf.point_correspondence_loss, f, *arguments, backend=backend)
    assert torch.equal(lgf.point_correspondence_loss(f, *arguments, backend=backend), with_gradient)


@every_value(distance=("huber", "l1"), reduction=("mean", "sum", "none"), far=(1e20, 1e36))
def test_a_far_target_is_as_far_as_it_is(backend, far, reduction, distance):
    """Its square is beyond the largest number of float32."""
    f, (queries, targets, weight) = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    rest = (queries, torch.where(weight[..., None] > 0.5, -far, targets), weight)
    for one in (backend, "reference"):
        against_reference(one, f, *rest, distance=distance, reduction=reduction, temperature=0.3)


def test_a_mean_of_far_targets_is_there_where_their_sum_is_not(backend):
    f, (queries, targets, weight) = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    for one in (backend, "reference"):
        against_reference(one, f, queries, torch.full_like(targets, 1e38), weight, temperature=0.3)


@every_value(distance=("huber", "l1"), reduction=("mean", "sum", "none"), case=("far", "far and heavy"))
def test_a_loss_beyond_float32_is_infinite_and_its_gradient_true(backend, case, reduction, distance):
    """Weights and targets are finite: what is too large is no NaN."""
    if case == "far and heavy" and reduction == "mean":
        pytest.skip("a mean knows no heavy weights")
    f, (queries, targets, weight) = features(2, 3, 4, 5, 6), points(2, 6, 3, 4, 5)
    far, heavy = (3e38, 1) if case == "far" else (1e30, 1e30)
    targets = torch.where(weight[..., None] > 0.5, -far, targets)
    options = {"temperature": 0.3, "distance": distance, "reduction": reduction}
    value, gradient = value_and_gradient(
        lgf.point_correspondence_loss, f, queries, targets, weight * heavy, backend=backend, **options
    )
    beyond = weight > 0.5
    beyond &= queries[..., :1] != torch.arange(3)
    assert (value[beyond].isposinf() if reduction == "none" else value.isposinf()).all()
    assert value[~beyond].isfinite().all() if reduction == "none" else True
    _, truth = value_and_gradient(
        lgf.point_correspondence_loss, f.double(), queries, targets, weight * heavy, backend="reference", **options
    )
    assert relative_error(gradient, truth) < 1e-5


@every_pair(bad=(torch.nan, torch.inf), at=("targets", "weight"), reduction=("mean", "sum", "none"))
def test_targets_and_weights_that_are_no_numbers_give_nan(backend, reduction, at, bad):
    f, (queries, targets, weight) = features(2, 3, 4, 5, 6), points(2, 6, 3, 4, 5)
    given = {"targets": targets, "weight": weight}
    given[at] = torch.full_like(given[at], bad)
    value = lgf.point_correspondence_loss(f, queries, **given, reduction=reduction, backend=backend)
    own = queries[..., :1] == torch.arange(3)
    skipped = own if at == "weight" else own | (weight == 0)
    assert value[~skipped].isnan().all() if reduction == "none" else value.isnan()


def test_a_close_target_is_as_close_as_it_is(backend):
    """Nearer than the root of the smallest number of float32: one token is found where it is, at 0."""
    f, queries, targets = features(1, 2, 1, 1, 3), torch.zeros(1, 1, 3), torch.full((1, 1, 2, 2), 3e-30)
    for one in (backend, "reference"):
        value = lgf.point_correspondence_loss(f, queries, targets, distance="l1", backend=one)
        torch.testing.assert_close(value.item(), 3e-30 * 2**0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("delta", [1e39, 1e300])
def test_a_delta_beyond_float32_leaves_the_parabola(backend, delta):
    f, rest = features(1, 3, 5, 6, 8), points(1, 9, 3, 5, 6)
    for one in (backend, "reference"):
        against_reference(one, f, *rest, delta=delta, temperature=0.3)


@every_pair(dtype=(torch.float32, torch.bfloat16, torch.float64), window=(1, 2), on_tokens=(True, False))
def test_of_one_channel_the_first_token_of_a_sign_is_found(backend, on_tokens, window, dtype):
    """All cosines are 1 or -1, and a window is around the first of equal ones; each backend must see that they are equal."""
    f, (queries, *rest) = features(1, 4, 17, 23, 1, dtype=dtype), points(1, 40, 4, 17, 23, on_tokens)
    f[0, :, 2, 3] = 1e-8  # no longer than eps: neither 1 nor -1
    f[0, 1, :4] = -f[0, 1, :4].abs()  # the first of a frame is not the first of a sign
    tolerance = rounding(dtype, backend) if dtype == torch.bfloat16 else 1e-5
    against_reference(backend, f, queries, loss=lgf.point_correspondence, window=window, tolerance=tolerance)
    against_reference(backend, f, queries, *rest, window=window, tolerance=tolerance)
    found = lgf.point_correspondence(f, queries, window=window, backend=backend)
    if on_tokens:
        t, y, x = queries[0].long().unbind(-1)
        signs = f[0, ..., 0].flatten(1).sign()[None]
        first = (signs == f[0, t, y, x].sign()[:, :, None]).int().argmax(-1)
        away = (found[0] - torch.stack([first // 23, first % 23], -1)).abs()
        assert away.max() <= window
