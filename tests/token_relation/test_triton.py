"""The Triton kernels of token relations in the interpreter: every row of the tables, every way to cut the work, extremes."""

import pytest
import torch
from support import numerics
from support.numerics import assert_close, features, relative_error, value_and_gradient
from support.pairs import every_value, name_of

import lgf_kernels as lgf

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("with a GPU the kernels are not interpreted; tests/gpu runs them", allow_module_level=True)

import triton
from triton.runtime.interpreter import interpreter_builder

from lgf_kernels.core import triton_launch as launch
from lgf_kernels.token_relation import panels
from lgf_kernels.token_relation import triton_configs as configs
from lgf_kernels.token_relation import triton_kernels as token_relation
from lgf_kernels.token_relation.options import RelationOptions
from lgf_kernels.token_relation.portable import backward, empty_residual

from .eager import eager

# Before `quick_interpreter` exchanges them.
TILES = dict(configs.RELATION_TILES)
DISTANCES = {row for rows in configs.DISTANCES.values() for row in rows}
PRODUCTS = {row for rows in configs.PRODUCTS.values() for row in rows}
TILE = 32


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that small inputs have many."""
    monkeypatch.setattr(configs, "RELATION_TILES", dict.fromkeys(TILES, (TILE, TILE)))


def against_reference(
    shape=(1, 3, 37, 20), teacher_channels=9, tolerance=1e-11, dtype=torch.float64, c=None, **options
):
    student = features(*shape, dtype=dtype)
    teacher = features(*shape[:3], teacher_channels, dtype=dtype)
    options["pair_weight"] = lgf.moalign_pair_weight(shape[1]) if c is None else c
    options |= dict(backend="triton", value=tolerance, gradient=tolerance)
    numerics.against_reference(lgf.token_relation_loss, student, teacher, **options)


@pytest.mark.parametrize("row", sorted({row._replace(num_warps=4, num_stages=1) for row in DISTANCES}), ids=str)
def test_rows_of_distances(monkeypatch, row):
    monkeypatch.setattr(configs, "DISTANCES", {size: [row] for size in TILES})
    against_reference((1, 1, 40, 150), 70)


@pytest.mark.parametrize("row", sorted({row._replace(num_warps=4, num_stages=1) for row in PRODUCTS}), ids=str)
def test_rows_of_products(monkeypatch, row):
    monkeypatch.setattr(configs, "RELATION_TILES", dict.fromkeys(TILES, (max(TILE, row.BLOCK_K),) * 2))
    monkeypatch.setattr(configs, "PRODUCTS", {size: [row] for size in TILES})
    against_reference((1, 1, 70, 150), 4)


@every_value(channels=((17, 64), (64, 17), (256, 768), (768, 256)), dtype=(torch.float64, torch.float32))
def test_channels(channels, dtype):
    """Of student and teacher."""
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    against_reference((1, 2, 30, channels[0]), channels[1], tolerance, dtype)


@pytest.mark.usefixtures("overflow_checks")
def test_no_index_overflows():
    against_reference((2, 3, 37, 20))


def test_wide_indices(monkeypatch):
    """Videos of more than 2^31 elements are indexed by int64; here a small one is."""
    monkeypatch.setattr(launch, "index_type", lambda *tensors: triton.language.int64)
    against_reference((2, 3, 37, 20))


def test_more_channels_than_a_block():
    against_reference((1, 1, 5, 1500), 3)


@every_value(
    N=(1, 3, TILE - 1, TILE, TILE + 5), form=("moalign", "videorepa", "videorepa-spatial", "videorepa-temporal")
)
def test_published_forms(form, N):
    """Frames smaller and larger than a tile, whose ends tiles run over."""
    loss = lgf.TokenRelationLoss(form)
    against_reference((1, 4, N, 8), 5, c=loss.pair_weight(4, "cpu"), margin=loss.margin)


@pytest.mark.parametrize("margin", [0.05, 0.4, 5.0])
def test_margins(margin):
    student, teacher = features(1, 2, 40, 8, dtype=torch.float64), features(1, 2, 40, 8, dtype=torch.float64)
    c = lgf.videorepa_pair_weight(2)
    ours, truth = (
        value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=c, margin=margin, backend=backend)
        for backend in ("triton", "reference")
    )
    for our, true in zip(ours, truth, strict=True):
        assert_close(our, true, 1e-11, absolute=0.0)


SQUARES = [{"distance": "l2"}, {"distance": "l2", "negatives": "clamp-teacher"}]


@pytest.mark.parametrize(
    "options", [*SQUARES, {"distance": "l2", "negatives": "clamp"}, {"negatives": "clamp", "margin": 0.1}], ids=name_of
)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_distances_negatives_similarities(options, similarity):
    against_reference((2, 2, 37, 20), similarity=similarity, **options)
    c = torch.tensor([[1.0, 0.5], [0, 0]])
    against_reference((1, 2, 20, 20), 9, 1e-5, torch.float32, c=c, similarity=similarity, **options)


@every_value(blocks=(1, 4, 7, 10, 20), videos=(1, 3))
def test_panels(monkeypatch, blocks, videos):
    """A video of 4 tiles has 10 blocks: less room cuts it into rows, twice as much takes two videos at once."""
    monkeypatch.setattr(panels, "scratch_bytes", lambda: blocks * TILE**2 * 8)
    allocated = []
    empty = torch.Tensor.new_empty

    def watched(tensor, shape, **options):
        allocated.append(shape)
        return empty(tensor, shape, **options)

    monkeypatch.setattr(torch.Tensor, "new_empty", watched)
    c = torch.rand(3, 3, dtype=torch.float64)
    against_reference((videos, 3, 37, 20), 9, c=c)
    (stored,) = [shape[0] for shape in allocated if isinstance(shape, tuple) and shape[1:] == (TILE, TILE)]
    assert stored <= max(blocks, 4)


@pytest.mark.parametrize("tiles", range(1, 9))
@pytest.mark.parametrize("budget", [1, 3, 10, 50])
def test_panels_cover_the_upper_triangle_once(budget, tiles):
    rows = []
    for panel in panels.panels(3, tiles, budget):
        assert panel.blocks(tiles) * len(range(3)[panel.videos]) <= budget or panel.end == panel.first + 1
        rows += [(video, row) for video in range(3)[panel.videos] for row in range(panel.first, panel.end)]
    assert sorted(rows) == [(video, row) for video in range(3) for row in range(tiles)]


@pytest.mark.parametrize("videos, processors", [(1, 8), (1, 13), (2, 1000)])
def test_several_programs_share_the_sum_of_a_tile(monkeypatch, videos, processors):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: processors)
    against_reference((videos, 3, 37, 20))
    against_reference((videos, 3, 37, 20), c=torch.eye(3))


def test_bands_of_weights():
    """Rows that reach a part of the others, one after a gap, and one that reaches none."""
    c = torch.zeros(6, 6)
    for f, g in [(0, 0), (0, 4), (1, 1), (1, 2), (5, 4)]:
        c[f, g] = 1.0 + f + g
    against_reference((2, 6, TILE + 9, 8), c=c)
    against_reference((2, 6, 7, 8), c=c)
    against_reference((1, 6, TILE, 8), c=torch.diag(torch.tensor([0.0, 0, 0, 0, 0, 1])))


@pytest.mark.parametrize("needs_grad", [False, True])
def test_pairs_of_frames_of_weight_zero_cost_no_products(monkeypatch, needs_grad):
    products = []
    multiply = type(interpreter_builder).create_dot

    def counted(*arguments):
        products.append(1)
        return multiply(*arguments)

    monkeypatch.setattr(type(interpreter_builder), "create_dot", counted)

    def count(c):
        products.clear()
        student = features(1, 6, TILE, 16, requires_grad=needs_grad)
        lgf.token_relation_loss(student, features(1, 6, TILE, 16), pair_weight=c, backend="triton")
        return len(products)

    # Two products for the distances of each of 21 pairs of tiles, and one in each of 36 places for the gradient.
    assert count(torch.ones(6, 6)) == 2 * 21 + needs_grad * 36
    assert count(torch.eye(6)) == 2 * 6 + needs_grad * 6
    assert count(torch.zeros(6, 6)) == 0


def test_what_has_weight_zero_may_be_not_a_number():
    student, teacher, c = features(1, 4, 20, 8), features(1, 4, 20, 8), torch.ones(4, 4)
    c[2] = c[:, 2] = 0
    expected = lgf.token_relation_loss(student, teacher, pair_weight=c, backend="triton")
    for tensor in (student, teacher):
        tensor[0, 2] = torch.nan
        assert torch.equal(lgf.token_relation_loss(student, teacher, pair_weight=c, backend="triton"), expected)


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_not_a_number_reaches_every_gradient_of_its_video(where):
    """And none of the video before, although it is the first token after that one's last."""
    tensors = {"student": features(2, 2, 40, 8, requires_grad=True), "teacher": features(2, 2, 40, 8)}
    tensors[where].data[1, 0, 0, 3] = torch.nan
    losses = lgf.token_relation_loss(
        **tensors, pair_weight=torch.ones(2, 2), margin=0.1, reduction="none", backend="triton"
    )
    losses.sum().backward()
    gradient = tensors["student"].grad
    assert losses[0].isfinite() and losses[1].isnan()
    assert gradient[0].isfinite().all() and gradient[1].isnan().all()


def test_the_same_features_differ_by_nothing():
    student = features(1, 3, 37, 20)
    loss, gradient = value_and_gradient(
        lgf.token_relation_loss, student, student.clone(), pair_weight=torch.ones(3, 3), backend="triton"
    )
    assert loss == 0 and (gradient == 0).all()


def test_short_vectors_are_not_projected():
    student, teacher = features(1, 2, 20, 8, dtype=torch.float64), features(1, 2, 20, 8, dtype=torch.float64)
    student[0, 0, 3] = teacher[0, 1, 4] = 0
    student[0, 1, 2] *= 1e-8
    c = lgf.moalign_pair_weight(2)
    ours, truth = (
        value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=c, backend=backend)
        for backend in ("triton", "reference")
    )
    assert_close(ours[0], truth[0], 1e-11)
    for our, true in zip(ours[1].flatten(0, 2), truth[1].flatten(0, 2), strict=True):  # their sizes differ by 10^6
        assert_close(our, true, 1e-8)  # Triton 3.6 takes EPS in float32


def test_float16_keeps_small_gradients():
    """Coefficients of 2 c / (N^2 |z_i| |z_j|) = 5e-9 lie below what float16 can hold; the gradient need not."""
    student, teacher, c = features(1, 1, 50, 16).half(), features(1, 1, 50, 16), torch.full((1, 1), 1e-4)
    loss, residual = token_relation.forward(student, teacher, c, RelationOptions(), True)
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), pair_weight=c, backend="reference"
    )
    assert_close(loss, truth[0], 1e-5)
    assert_close(residual, truth[1], 1e-5)


@pytest.mark.parametrize("alike", [0.0, 1.0, 4.0], ids="alike {}".format)
@pytest.mark.parametrize("options", [{}, *SQUARES], ids=name_of)
def test_rounded_coefficients_are_at_most_twice_as_far_off_as_eager(options, alike):
    """In bfloat16 through eager PyTorch, with tokens that have more and more in common."""
    common = features(16) * alike
    student, teacher = ((features(1, 3, 60, 16) + common).bfloat16() for _ in range(2))
    options = {"pair_weight": lgf.moalign_pair_weight(3), **options}
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), backend="reference", **options
    )
    ours = value_and_gradient(lgf.token_relation_loss, student, teacher, backend="triton", **options)
    theirs = value_and_gradient(eager, student, teacher, **options)
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert relative_error(our, true) <= 2 * relative_error(their, true)
    assert relative_error(ours[0], truth[0]) <= 1e-5 and relative_error(ours[1], truth[1]) <= 1e-2


def test_backward_scales_and_rounds_once():
    residual, upstream = features(3, 2, 5, 4), torch.tensor(1.7)
    for reduction, grad_loss in [("mean", upstream), ("sum", upstream), ("none", features(3))]:
        for dtype in (torch.float32, torch.bfloat16):
            ours = token_relation.backward(grad_loss, residual, reduction, dtype)
            assert ours.dtype == dtype and torch.equal(ours, backward(grad_loss, residual, reduction, dtype))


def test_what_is_kept_is_what_the_portable_backend_keeps():
    assert token_relation.empty_residual is empty_residual


def test_the_budget_can_be_set(monkeypatch):
    assert panels.scratch_bytes() == 2**30
    monkeypatch.setenv("LGF_SCRATCH_MIB", "64")
    assert panels.scratch_bytes() == 64 * 2**20


@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_tables_have_a_row_for_every_call(operand):
    for channels in (1, 17, 256, 2048):
        for row in configs.distances(channels, operand, 90):
            assert row.BLOCK_C >= 16
        for tile in TILES[operand.itemsize]:
            for row in configs.products(channels, operand, tile, 90):
                assert row.BLOCK_C >= 16 <= row.BLOCK_K and tile % row.BLOCK_K == 0


def test_small_frames_have_small_tiles(monkeypatch):
    monkeypatch.setattr(configs, "RELATION_TILES", {8: (64, 16)})
    assert [configs.relation_tile(torch.float64, N) for N in (63, 64)] == [16, 64]
    against_reference((1, 3, 20, 8))


@pytest.mark.parametrize("given", ["", "0", "-1", "1 GiB"])
def test_a_budget_that_is_none(monkeypatch, given):
    monkeypatch.setenv("LGF_SCRATCH_MIB", given)
    with pytest.raises(ValueError, match="LGF_SCRATCH_MIB must be a number of mebibytes"):
        panels.scratch_bytes()
