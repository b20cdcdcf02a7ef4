"""The CUDA kernels of token relations on the model of a GPU (tests/models/cuda), against the oracle in float64."""

import pytest
import torch
from counted.work import H200
from models.cuda.fixtures import WAYS
from models.cuda.launch import GRADIENT, HALVES, work
from support.numerics import assert_close, features, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf
from lgf_kernels.token_relation import cuda as token_relation
from lgf_kernels.token_relation import panels
from lgf_kernels.token_relation.options import RelationOptions

from .cuda_inputs import TILE, UPSTREAM, against_reference, inputs


@pytest.mark.parametrize("channels", [(8, 8), (72, 40), (136, 16), (264, 64), (24, 264)], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_channels_on_the_tensor_cores(tensor_cores, dtype, channels):
    """Chunks that end early, one and two products wide, and more than that."""
    against_reference(*inputs((1, 2, 75, channels[0]), channels[1], dtype))


@pytest.mark.parametrize("channels", [(1, 1), (17, 64), (70, 9), (130, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_channels_on_plain_kernels(model, dtype, channels):
    student, teacher = inputs((1, 2, 45, channels[0]), channels[1], dtype)
    if channels == (1, 1):  # similarities of 1 and -1, and nothing that a gradient could turn
        ours, truth = (
            value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=torch.ones(2, 2), backend=name)
            for name in ("native", "reference")
        )
        assert_close(ours[0].double(), truth[0].double(), 1e-2)
        assert ours[1].abs().max() <= 1e-4
    else:
        against_reference(student, teacher)


FORMS = ("moalign", "videorepa", "videorepa-spatial", "videorepa-temporal")


@every_pair(way=WAYS, N=(1, 3, 60, TILE - 1, TILE, TILE + 5), form=FORMS)
def test_published_forms(tensor_cores, form, N):
    """Frames smaller and larger than a tile, whose ends tiles run over."""
    loss = lgf.TokenRelationLoss(form)
    frames = 3 if N > 3 else 70
    student, teacher = inputs((1, frames, N, 16), 8, torch.bfloat16)
    against_reference(student, teacher, loss.pair_weight(frames, "cpu"), margin=loss.margin)


@every_pair(
    form=("moalign", "videorepa-spatial", "videorepa-temporal"),
    channels=((128, 128), (136, 72), (256, 256), (24, 264)),
    processors=(1, 3),
    blocks=(1000, 7),
)
def test_stretches_of_pairs_of_one_row(model, monkeypatch, form, channels, processors, blocks):
    """From 4 chunks on up to as many as fit, Hopper's kernel keeps a row's; pairs without weight interrupt the stretches."""
    model.lgf_model_hopper(1)
    model.lgf_model_multiprocessors(processors, 228)
    monkeypatch.setattr(panels, "scratch_bytes", lambda: blocks * TILE**2 * 2)
    student, teacher = inputs((2, 5, TILE - 10, channels[0]), channels[1], torch.bfloat16)
    against_reference(student, teacher, lgf.TokenRelationLoss(form).pair_weight(5, "cpu"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", [1, 31, 33, 70])
def test_published_forms_on_plain_kernels(model, form, N):
    loss = lgf.TokenRelationLoss(form)
    student, teacher = inputs((1, 4, N, 5), 7, torch.float64)
    against_reference(student, teacher, loss.pair_weight(4, "cpu"), margin=loss.margin)


@every_pair(
    way=WAYS,
    dtype=(*HALVES, torch.float32, torch.float64),
    options={
        "distance": ("l1", "l2"),
        "negatives": ("keep", "clamp", "clamp-teacher"),
        "similarity": ("cosine", "dot"),
    },
)
def test_distances_negatives_similarities(tensor_cores, dtype, options):
    against_reference(*inputs((2, 3, 50, 24), 16, dtype), **options)


@pytest.mark.parametrize("options", [{}, {"similarity": "dot"}], ids=str)
@pytest.mark.parametrize("distance", [1e-1, 1e-3])
def test_float16_has_the_range_of_small_differences(tensor_cores, distance, options):
    """Coefficients of squares are as small as the differences, and with dot as large as the products of two tokens."""
    student, _ = inputs((1, 2, 70, 16), 8, torch.float16)
    student[0, 0, 0] *= 100
    teacher = (student + distance * features(*student.shape)).half()
    c = torch.tensor([[1.0, 1e-3], [1e-3, 1.0]])
    squares = RelationOptions(distance="l2", **options)
    loss, residual = token_relation.forward(student, teacher, c, squares, True)
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), pair_weight=c, distance="l2", backend="reference",
        **options,
    )  # fmt: skip
    assert_close(loss, truth[0], 1e-4)
    assert_close(residual, truth[1], 1e-3)


@every_pair(
    way=WAYS,
    dtype=(torch.bfloat16, torch.float16, torch.float64),
    margin=(0.05, 0.4, 5.0),
    reduction=("mean", "sum", "none"),
)
def test_margins_and_reductions(tensor_cores, dtype, margin, reduction):
    student, teacher = inputs((3, 2, 40, 16), 8, dtype)
    upstream = torch.tensor([1.0, -2.0, 0.5]) * UPSTREAM if reduction == "none" else UPSTREAM
    options = dict(margin=margin, reduction=reduction, upstream=upstream)
    if margin < 2:
        against_reference(student, teacher, **options)
    else:
        options["pair_weight"] = torch.ones(2, 2)
        value, gradient = value_and_gradient(lgf.token_relation_loss, student, teacher, backend="native", **options)
        assert not value.any() and not gradient.any()


@pytest.mark.parametrize(
    "dtypes",
    [
        (a, b)
        for a in (*HALVES, torch.float32, torch.float64)
        for b in (*HALVES, torch.float32, torch.float64)
        if a != b
    ],
    ids=str,
)
def test_teachers_of_other_types(model, dtypes):
    against_reference(*inputs((1, 2, 30, 16), 24, *dtypes))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_strides(tensor_cores, dtype):
    """Frames that do not follow each other, channels apart, and tokens that no 16 bytes divide."""
    permuted = features(2, 16, 3, 4, 5, dtype=dtype).permute(0, 2, 3, 4, 1)
    sliced = features(4, 6, 4, 5, 40, dtype=dtype)[::2, ::2, ..., 8:24]
    odd = features(2, 3, 4, 5, 19, dtype=dtype)[..., 1:17]
    for student, teacher in ((permuted, sliced), (sliced, odd), (odd, permuted)):
        against_reference(student, teacher)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights(tensor_cores, dtype):
    """Not symmetric; rows that reach a part of the others, one after a gap, and one that reaches none; none at all."""
    c = torch.zeros(6, 6)
    for f, g in [(0, 0), (0, 4), (1, 1), (1, 2), (5, 4)]:
        c[f, g] = 1.0 + f + g
    for N, weights in [(TILE // 2 + 9, c), (7, c), (TILE, torch.eye(6) * torch.arange(6)), (50, torch.rand(6, 6))]:
        against_reference(*inputs((1, 6, N, 8), 16, dtype), weights)
    student, teacher = inputs((1, 6, 50, 8), 16, dtype)
    value, gradient = value_and_gradient(
        lgf.token_relation_loss, student, teacher, pair_weight=torch.zeros(6, 6), backend="native"
    )
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("processors", [1, 2])
def test_weights_far_apart(model, processors):
    """More pairs without weight between them than a warp looks at together."""
    model.lgf_model_multiprocessors(processors, 228)
    c = torch.zeros(24, 24)
    for frame in (0, 5, 12, 23):
        c[frame, frame] = 1.0
    against_reference(*inputs((2, 24, TILE // 2, 8), 8, torch.bfloat16), c)
    against_reference(*inputs((1, 24, TILE, 8), 8, torch.bfloat16), c)


@every_pair(way=WAYS, dtype=(torch.bfloat16, torch.float32), blocks=(1, 4, 5, 7, 10, 20), videos=(1, 3))
def test_panels(tensor_cores, monkeypatch, dtype, blocks, videos):
    """A video of 4 tiles has 10 blocks: less room cuts it into rows, twice as much takes two videos at once."""
    tile = TILE if dtype == torch.bfloat16 else 64
    monkeypatch.setattr(panels, "scratch_bytes", lambda: blocks * tile**2 * dtype.itemsize)
    against_reference(*inputs((videos, 3, tile + 7, 16), 8, dtype), torch.rand(3, 3))


@pytest.mark.parametrize("videos, processors", [(1, 13), (2, 17), (2, 1000)])
def test_several_blocks_share_the_sum_of_a_tile(tensor_cores, videos, processors):
    tensor_cores.lgf_model_multiprocessors(processors, 228)
    student, teacher = inputs((videos, 3, TILE + 5, 24), 16, torch.float16)
    against_reference(student, teacher)
    against_reference(student, teacher, torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_order_of_warps_and_the_number_of_blocks_change_no_bit(tensor_cores, monkeypatch, dtype):
    """But for how many blocks share a sum, which only the gradient would show."""
    monkeypatch.setattr(panels, "MAX_SPLITS", 1)
    student, teacher = inputs((2, 3, TILE - 20, 16), 72, dtype)
    c, results = lgf.moalign_pair_weight(3), []
    for processors, reverse in ((1, 0), (2, 1), (3, 0), (7, 1), (100, 0)):
        tensor_cores.lgf_model_multiprocessors(processors, 228)
        tensor_cores.lgf_model_reverse(reverse)
        results.append(value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=c, backend="native"))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("frames_alone", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_pairs_of_frames_of_weight_zero_cost_no_products(tensor_cores, needs_grad, frames_alone):
    c = torch.eye(5) if frames_alone else torch.ones(5, 5)
    student, teacher = inputs((1, 5, TILE, 16), 8, torch.bfloat16)
    student.requires_grad_(needs_grad)
    _, (*_, products) = work(
        tensor_cores, lambda: lgf.token_relation_loss(student, teacher, pair_weight=c, backend="native")
    )
    # One chunk of channels of student and teacher for each pair of tiles, two of tokens for each block of coefficients.
    pairs, blocks = (5, 5) if frames_alone else (15, 25)
    of_a_chunk = TILE * TILE * 64
    assert products == of_a_chunk * (2 * pairs + 2 * needs_grad * blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_has_weight_zero_may_be_not_a_number(tensor_cores, dtype):
    student, teacher = inputs((1, 4, TILE, 8), 8, dtype)
    c = torch.ones(4, 4)
    c[2] = c[:, 2] = 0
    expected = lgf.token_relation_loss(student, teacher, pair_weight=c, backend="native")
    for tensor in (student, teacher):
        tensor[0, 2] = torch.nan
        assert torch.equal(lgf.token_relation_loss(student, teacher, pair_weight=c, backend="native"), expected)


@every_pair(way=WAYS, dtype=(*HALVES, torch.float32), where=("student", "teacher"), bad=(torch.nan, torch.inf))
def test_not_a_number_reaches_every_gradient_of_its_video(tensor_cores, dtype, where, bad):
    """And none of the video before, although it is the first token after that one's last."""
    tensors = dict(zip(("student", "teacher"), inputs((2, 2, 40, 8), 8, dtype), strict=True))
    tensors[where][1, 0, 0, 3] = bad
    losses, gradient = value_and_gradient(
        lgf.token_relation_loss, **tensors, pair_weight=torch.ones(2, 2), margin=0.1, reduction="none", backend="native"
    )
    assert losses[0].isfinite() and losses[1].isnan()
    assert gradient[0].isfinite().all() and gradient[1].isnan().all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_the_same_features_differ_by_nothing(tensor_cores, dtype):
    student = features(1, 3, 50, 24, dtype=dtype)
    value, gradient = value_and_gradient(
        lgf.token_relation_loss, student, student.clone(), pair_weight=torch.ones(3, 3), backend="native"
    )
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
def test_short_vectors_are_not_projected(tensor_cores, dtype):
    student, teacher = inputs((1, 2, 20, 8), 16, dtype)
    student[0, 0, 3] = teacher[0, 1, 4] = 0
    student[0, 1, 2] *= 1e-7
    c = lgf.moalign_pair_weight(2)
    _, residual = token_relation.forward(student, teacher, c, RelationOptions(), True)
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), pair_weight=c, backend="reference"
    )
    for our, true in zip(residual.flatten(0, 2), truth[1].flatten(0, 2), strict=True):  # their sizes differ by 10^6
        assert_close(our, true, 2 * GRADIENT[dtype])


@pytest.mark.parametrize("weight", [1e-9, 1.0, 1e6])
def test_float16_has_the_range_of_the_norms_and_the_weights(tensor_cores, weight):
    """Coefficients 2 c / (N^2 |z_i| |z_j|) of sizes that differ by 10^6, themselves and by their weights."""
    student, teacher = inputs((1, 2, 70, 16), 8, torch.float16)
    student *= torch.logspace(-3, 3, 70).roll(5)[:, None].half()
    c = weight * torch.tensor([[1.0, 1e-4], [1e-4, 1.0]])
    loss, residual = token_relation.forward(student, teacher, c, RelationOptions(), True)
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), pair_weight=c, backend="reference"
    )
    assert_close(loss, truth[0], 2e-6)
    for our, true in zip(residual.flatten(0, 2), truth[1].flatten(0, 2), strict=True):
        assert_close(our, true, 2 * GRADIENT[torch.float16])


def test_the_module_refuses_what_does_not_fit_together(model, built):
    module, _ = built
    with pytest.raises(ValueError, match="video"):
        module.relation_project(
            (0, "float32", 4, (0, 0, 0, 4)), (1, 0, 3, 0), 0, None, (0, 1, 0), 0, device=0, stream=0
        )
    with pytest.raises(ValueError, match="rows"):
        module.relation_products(
            (0, "float32", 4, (0, 0, 0, 4)), (1, 1, 3, 0), 0,
            coefficient_dtype="float32", rows=(1, 1), parts=(0, 1, 0), device=0, stream=0,
        )  # fmt: skip


@pytest.mark.parametrize("channels", [(72, 40), (264, 24)], ids=str)
@pytest.mark.parametrize("processors", [1, 13], ids="{} multiprocessors".format)
def test_the_work_is_what_the_report_counts(model, processors, channels):
    """Of Hopper's kernels, with one block to a sum and with two."""
    counts = pytest.importorskip("counted.token_relation", reason="it counts Triton's kernels too")
    model.lgf_model_hopper(1)
    model.lgf_model_multiprocessors(processors, 228)
    shape = counts.Shape(2, 3, TILE // 2 + 9, *channels)
    norms, distances, products, projection = counts.cuda(shape, H200._replace(sms=processors))
    student, teacher = inputs(shape[:4], shape.teacher, torch.bfloat16)
    for needs_grad in (False, True):
        kernels = [distances, products][: 1 + needs_grad]
        _, (blocks, copied, staged, loads, macs) = work(
            model,
            lambda: lgf.token_relation_loss(student, teacher, pair_weight=torch.ones(3, 3), backend="native"),
        )
        assert copied == sum(kernel.l2 for kernel in kernels)
        assert macs == sum(kernel.wgmma for kernel in kernels)
        assert staged + loads * 512 == sum(kernel.shared for kernel in kernels)
        # Blocks of distances take one pair of tiles after the other.
        assert blocks == norms.blocks + processors + needs_grad * (products.blocks + projection.blocks)
        student.requires_grad_()
