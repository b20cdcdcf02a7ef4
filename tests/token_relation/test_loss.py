"""Token relation losses on every backend against the oracle."""

import pytest
import torch
from support import numerics
from support.numerics import assert_close, backends_of, features, relative_error, value_and_gradient
from support.pairs import every_pair, name_of

import lgf_kernels as lgf
from lgf_kernels.token_relation import portable
from lgf_kernels.token_relation.api import FORMS

from .eager import eager

pytestmark = pytest.mark.parametrize("backend", backends_of("token_relation"))

SQUARED = [{"distance": "l2"}, {"distance": "l2", "negatives": "clamp", "similarity": "dot"}]
HALF_PRECISION = [{}, {"negatives": "clamp"}, {"distance": "l2", "negatives": "clamp-teacher"}, *SQUARED]
#: (B, F, N, C, teacher's C)
SHAPES = [(1, 1, 1, 1, 1), (2, 5, 1, 3, 2), (1, 2, 700, 5, 9), (2, 4, 40, 17, 64), (1, 2, 130, 132, 260)]


def against_reference(backend, student, teacher, tolerance=1e-5, **options):
    """Compare loss and gradient with the oracle's, for a random upstream gradient."""
    B = len(student)
    upstream = torch.randn(B if options.get("reduction") == "none" else (), dtype=torch.float64)
    options |= dict(upstream=upstream, value=tolerance, gradient=tolerance)
    # The gradient of a single token is 0 where norms are divided first.
    numerics.against_reference(lgf.token_relation_loss, student, teacher, backend=backend, absolute=1e-15, **options)


@every_pair(shape=SHAPES, margin=(0.0, 0.1), reduction=("mean", "sum", "none"))
def test_shapes_margins_reductions(backend, reduction, margin, shape):
    B, frames, N, C, D = shape
    student, teacher = features(B, frames, N, C, dtype=torch.float64), features(B, frames, N, D, dtype=torch.float64)
    c = lgf.moalign_pair_weight(frames)
    against_reference(backend, student, teacher, pair_weight=c, margin=margin, reduction=reduction, tolerance=1e-11)


def test_a_margin_beyond_float32_forgives_everything(backend):
    against_reference(backend, features(1, 2, 5, 4), features(1, 2, 5, 4), pair_weight=torch.ones(2, 2), margin=1e39)


@every_pair(
    options={
        "distance": ("l1", "l2"),
        "negatives": ("keep", "clamp", "clamp-teacher"),
        "similarity": ("cosine", "dot"),
    },
    dtype=(torch.float64, torch.float32),
    shape=((2, 3, 40, 17, 5), (1, 2, 130, 8, 8)),
)
def test_distances_negatives_similarities(backend, shape, dtype, options):
    *tokens, C, D = shape
    student, teacher = features(*tokens, C, dtype=dtype), features(*tokens, D, dtype=dtype)
    student[0, 1, 3] = 0  # whose similarities are 0, and count as kept
    tolerance = 1e-11 if dtype == torch.float64 else 2e-6
    c = torch.rand(tokens[1], tokens[1])
    against_reference(backend, student, teacher, pair_weight=c, tolerance=tolerance, **options)


@pytest.mark.parametrize("form", FORMS)
def test_published_forms(backend, form):
    student, teacher = features(2, 6, 3, 5, 24), features(2, 6, 3, 5, 40)
    loss = lgf.TokenRelationLoss(form, backend=backend)
    truth = lgf.TokenRelationLoss(form, backend="reference")
    ours = value_and_gradient(loss, student, teacher)
    theirs = value_and_gradient(truth, student.double(), teacher.double())
    assert_close(ours[0], theirs[0], 1e-5)
    assert_close(ours[1], theirs[1], 1e-5)


def test_zero_weights_and_asymmetric_weights(backend):
    student, teacher = features(1, 6, 150, 8, dtype=torch.float64), features(1, 6, 150, 8, dtype=torch.float64)
    c = torch.rand(6, 6, dtype=torch.float64) * (torch.rand(6, 6) < 0.3)
    assert (c != c.T).any()
    against_reference(backend, student, teacher, pair_weight=c, tolerance=1e-11)
    against_reference(backend, student, teacher, pair_weight=(c + c.T) / 2, tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", HALF_PRECISION, ids=name_of)
def test_half_precision_is_at_most_twice_as_far_off_as_eager(backend, options, dtype):
    student, teacher = features(1, 4, 40, 64, dtype=dtype), features(1, 4, 40, 48, dtype=dtype)
    options = {"pair_weight": lgf.moalign_pair_weight(4), **options}
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), backend="reference", **options
    )
    ours = value_and_gradient(lgf.token_relation_loss, student, teacher, backend=backend, **options)
    theirs = value_and_gradient(eager, student, teacher, **options)
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert relative_error(our, true) <= 2 * relative_error(their, true)
    assert relative_error(ours[0], truth[0]) <= 1e-5 and relative_error(ours[1], truth[1]) <= 1e-2


@pytest.mark.parametrize("options", [{}, {"distance": "l2"}, {"distance": "l2", "negatives": "clamp"}], ids=name_of)
def test_strided_inputs(backend, options):
    student, teacher = features(2, 8, 3, 4, 5).permute(0, 2, 3, 4, 1), features(2, 6, 4, 5, 16)[:, ::2, ..., ::2]
    against_reference(
        backend, student.double(), teacher.double(), pair_weight=lgf.moalign_pair_weight(3), tolerance=1e-11, **options
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["student", "teacher"])
@pytest.mark.parametrize("options", [{}, {"margin": 0.1}, *SQUARED], ids=name_of)
def test_not_a_number_in_is_not_a_number_out(backend, options, where, bad):
    tensors = {"student": features(2, 3, 20, 8), "teacher": features(2, 3, 20, 8)}
    tensors[where][1, 2, 7, 3] = bad
    losses = lgf.token_relation_loss(
        **tensors, pair_weight=lgf.moalign_pair_weight(3), reduction="none", backend=backend, **options
    )
    assert losses[0].isfinite() and losses[1].isnan()


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_norm_whose_square_overflows_is_not_a_number(backend, where, distance):
    """As inf it would make every similarity of the token 0, and the loss finite and wrong."""
    tensors = {"student": features(1, 2, 6, 8), "teacher": features(1, 2, 6, 8)}
    tensors[where][0, 1, 2] *= 1e25
    for name in (backend, "reference"):
        options = dict(pair_weight=torch.ones(2, 2), distance=distance, backend=name)
        assert lgf.token_relation_loss(**tensors, **options).isnan()


@pytest.mark.parametrize("options", [{}, *SQUARED], ids=name_of)
@pytest.mark.parametrize("tokens", [20, 200], ids=["frames share a tile", "a tile for each frame"])
def test_a_frame_of_weight_zero_is_no_part_of_the_loss(backend, tokens, options):
    student, teacher = features(1, 4, tokens, 8), features(1, 4, tokens, 8)
    c = torch.ones(4, 4)
    c[2] = c[:, 2] = 0
    broken = student.clone()
    broken[0, 2] = torch.nan
    options = dict(pair_weight=c, backend=backend, **options)
    expected = lgf.token_relation_loss(student, teacher, **options)
    assert torch.equal(lgf.token_relation_loss(broken, teacher, **options), expected)


def test_a_loss_that_overflows_is_not_a_number(backend):
    c = torch.full((3, 3), torch.finfo(torch.float32).max)
    assert lgf.token_relation_loss(features(1, 3, 20, 8), features(1, 3, 20, 8), pair_weight=c, backend=backend).isnan()


@pytest.mark.parametrize("options", [{}, *SQUARED], ids=name_of)
def test_two_runs_are_bitwise_equal(backend, options):
    student, teacher, c = features(2, 5, 60, 32), features(2, 5, 60, 16), lgf.moalign_pair_weight(5)
    first, second = (
        value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=c, backend=backend, **options)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tiles_cover_the_upper_triangle_once(backend):
    """Small frames grouped, large ones split: every pair of tokens i <= j stands in exactly one tile."""
    for frames, N, videos in [(5, 3, 1), (3, 700, 1), (4, 130, 3), (2, 2000, 9), (30, 1, 1)]:
        covered = torch.zeros(frames * N, frames * N, dtype=torch.int8)
        for rows, columns in portable.tiles(frames, N, videos, torch.ones(frames, frames)):
            covered[rows.tokens, columns.tokens] += 1
            if rows != columns:
                covered[columns.tokens, rows.tokens] += 1
            size = (rows.tokens.stop - rows.tokens.start) * (columns.tokens.stop - columns.tokens.start) * videos
            assert size <= portable.TILE_ELEMENTS
        assert (covered == 1).all()


def test_tiles_of_weight_zero_are_left_out(backend):
    spatial = lgf.videorepa_pair_weight(24, "spatial")
    assert len(list(portable.tiles(24, 150, 1, spatial))) == 24
    neighbours = torch.ones(24, 24).tril(1).triu(-1)
    assert len(list(portable.tiles(24, 150, 1, neighbours))) == 24 + 23
