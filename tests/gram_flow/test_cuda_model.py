"""The CUDA kernels of Local Gram Flow on the model of a GPU (tests/models/cuda), against the oracle in float64.

The model has no speed, no races within a warp and none of the hardware's own behaviour: those are for tests/gpu.
"""

import pytest
import torch
from models.cuda.launch import GRADIENT, HALVES, against_reference, work
from support.numerics import assert_close, features, value_and_gradient
from support.pairs import every_pair, every_value

import lgf_kernels as lgf


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 1, 8), (2, 2, 3, 4, 16), (1, 2, 9, 17, 40), (1, 3, 8, 5, 72), (1, 2, 2, 33, 8)], ids=str
)
def test_tensor_core_shapes(model, shape, dtype):
    """One token, frames smaller than a window, than a tile, and just larger; channels that end within a chunk."""
    student, teacher = features(*shape, dtype=dtype), features(*shape[:4], 24, dtype=dtype)
    if shape[2:4] == (1, 1):  # one key: the loss is 0 whatever the features
        value, gradient = value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend="native")
        assert value == 0 and not gradient.any()
    else:
        against_reference(lgf.lgf_kl_loss, student, [teacher])


def test_the_stride_of_one_video_does_not_rule_out_tensor_cores(model):
    """It is never used, and slicing may leave any number there."""
    student = features(1, 2, 5, 6, 40, dtype=torch.bfloat16)
    strided = student.as_strided(student.shape, (student.stride(0) + 1, *student.stride()[1:]))
    counts = [
        work(model, lambda x=x: value_and_gradient(lgf.lgf_kl_loss, x, [student], backend="native"))[1]
        for x in (student, strided)
    ]
    assert counts[0] == counts[1] and counts[0][-1] > 0


@every_pair(dtype=HALVES, channels=(264, 520), similarity=("cosine", "dot"))
def test_more_channels_than_a_backward_holds(model, dtype, channels, similarity):
    """Their products are made twice where the gradient is projected. The sums of 256 channels are held."""
    upstream = 0.1 * torch.randn(1, 2, 3, 9, 49, dtype=torch.float64)
    f, options = features(1, 3, 3, 9, channels, dtype=dtype), dict(similarity=similarity, upstream=upstream)
    ours = value_and_gradient(lgf.local_gram_flow, f, backend="native", **options)
    truth = value_and_gradient(lgf.local_gram_flow, f.double(), backend="reference", **options)
    assert_close(ours[1], truth[1], GRADIENT[dtype])


@pytest.mark.parametrize("channels", [(8,), (24, 40), (8, 16, 72)], ids=str)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_one_to_three_teachers(model, dtype, channels):
    student, teachers = features(1, 2, 5, 6, 40, dtype=dtype), [features(1, 2, 5, 6, C, dtype=dtype) for C in channels]
    against_reference(lgf.lgf_kl_loss, student, teachers, teacher_weights=[0.3, 0.9, 0.5][: len(channels)])


@every_pair(
    channels=(8, 7),  # for the tensor cores, and for plain kernels
    options={
        "similarity": ("cosine", "dot"),
        "boundary": ("exclude", "zero"),
        "divergence": ("kl", "l2"),
        "direction": ("forward", "backward", "both"),
    },
)
def test_every_option(model, channels, options):
    student, teacher = (0.5 * features(2, 3, 4, 5, channels, dtype=torch.bfloat16) for _ in range(2))
    against_reference(
        lgf.lgf_kl_loss, student, [teacher], **options, temperature=0.4, token_weight=torch.rand(2, 2, 4, 5)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", range(1, 16, 2))
def test_every_window(model, window, dtype):
    """Teachers of other types than the student's; l2, because with a window of 1 there is nothing else to tell."""
    student, teachers = (
        features(1, 3, 6, 11, 19, dtype=dtype),
        [features(1, 3, 6, 11, 5), features(1, 3, 6, 11, 8).half()],
    )
    against_reference(
        lgf.lgf_kl_loss, student, teachers, window=window, divergence="l2" if window == 1 else "kl", direction="both"
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_cached_logits(model, dtype, reduction):
    student = features(1, 3, 5, 19, 16, dtype=dtype)
    caches = [lgf.local_gram_flow(features(1, 3, 5, 19, 6), backend="reference").half() for _ in range(2)]
    caches[1] = torch.nn.functional.pad(caches[1], (3, 5))[..., 3:-5]  # tokens do not follow each other
    against_reference(lgf.lgf_kl_loss_from_logits, student, caches, reduction=reduction)


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_local_gram_flow(model, dtype, direction):
    f = features(2, 3, 5, 9, 16, dtype=dtype)
    upstream = torch.randn(2, 2, 5, 9, 49, dtype=torch.float64)
    options = dict(direction=direction, upstream=upstream)
    ours = value_and_gradient(lgf.local_gram_flow, f, backend="native", **options)
    truth = value_and_gradient(lgf.local_gram_flow, f.double(), backend="reference", **options)
    assert_close(ours[0], truth[0], 1e-12 if dtype == torch.float64 else 1e-6)
    assert_close(ours[1], truth[1], GRADIENT[dtype])
    mask = lgf.local_window_mask(5, 9, 7)
    assert not ours[0][:, :, ~mask].any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_strides(model, dtype):
    student = features(1, 4, 5, 10, 32, dtype=dtype)[:, 1:, :, 2:, 8:24]
    against_reference(lgf.lgf_kl_loss, student, [features(1, 24, 3, 5, 8, dtype=dtype).permute(0, 2, 3, 4, 1)])


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_float16_has_not_the_range_of_a_gradient(model, scale):
    """Coefficients far below and above what float16 holds, of tokens that differ; the gradient itself fits."""
    f = features(1, 3, 5, 9, 16).half()
    upstream = scale * torch.randn(1, 2, 5, 9, 49, dtype=torch.float64) * torch.logspace(-2, 2, 9)[:, None]
    size = 0.5 if scale > 1 else 1e-3  # short features make up for a small upstream
    ours = value_and_gradient(
        lgf.local_gram_flow, (f * 64 if scale > 1 else f * size), backend="native", upstream=upstream
    )
    truth = value_and_gradient(
        lgf.local_gram_flow, (f * 64 if scale > 1 else f * size).double(), backend="reference", upstream=upstream
    )
    assert_close(ours[1], truth[1], GRADIENT[torch.float16])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_neighbours_that_are_alike(model, dtype):
    """The gradient is a small difference of large terms there: rounded normalised copies would lose it."""
    common = torch.randn(16, dtype=torch.float64)
    student = (common + 0.05 * torch.randn(1, 2, 6, 9, 16, dtype=torch.float64)).to(dtype)
    teacher = features(1, 2, 6, 9, 8, dtype=dtype)
    against_reference(lgf.lgf_kl_loss, student, [teacher], gradient=1.5e-2 if dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_short_vectors_lose_no_projection(model, dtype):
    student = features(1, 2, 4, 5, 8, dtype=dtype)
    student[0, 0, 1, 2] = 0
    upstream = 1e-4 * torch.randn(1, 1, 4, 5, 49, dtype=torch.float64)
    ours = value_and_gradient(lgf.local_gram_flow, student, backend="native", upstream=upstream)
    truth = value_and_gradient(lgf.local_gram_flow, student.double(), backend="reference", upstream=upstream)
    assert_close(ours[1], truth[1], GRADIENT[dtype])


@pytest.mark.parametrize("channels", [8, 7], ids=["tensor cores", "plain"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_never_pass_for_numbers(model, bad, channels):
    student, teacher = (features(1, 2, 12, 20, channels, dtype=torch.bfloat16) for _ in range(2))
    student[0, 0, 5, 9, 3] = bad
    tokens, gradient = value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend="native", reduction="none")
    hit = torch.zeros(12, 20, dtype=torch.bool)
    hit[5, 9] = True
    assert torch.equal(tokens[0, 0].isnan(), hit)
    assert gradient[0, 0, 5, 9].isnan().all() and gradient[0, 1, 2:9, 6:13].isnan().all()
    assert gradient[0, :, :, 17:].isfinite().all()


#: Tokens of 24 x 33 that keep a weight: what tiles of 8 x 16 and of 8 x 8, their halos, and single warps see.
KEPT = {
    "rows of a shard": lambda y, x: (y >= 3) & (y < 9),
    "the last row": lambda y, x: y == 23,
    "the first column": lambda y, x: x == 0,
    "one token": lambda y, x: (y == 15) & (x == 15),
    "a corner's neighbour": lambda y, x: (y == 16) & (x == 16),
    "none": lambda y, x: (y < 0) & (x < 0),
}


@every_pair(
    kept=tuple(KEPT),
    kind=(
        (7, torch.bfloat16, 16),
        (7, torch.float16, 264),
        (7, torch.float32, 5),
        (3, torch.bfloat16, 8),
        (15, torch.float64, 3),
    ),
    direction=("forward", "backward", "both"),
    cached=(False, True),
    similarity=("cosine", "dot"),
)
def test_tiles_of_weight_zero(model, kept, kind, direction, cached, similarity):
    """All weights in the first pair of frames, and some in the second."""
    window, dtype, channels = kind
    student, teacher = (features(1, 3, 24, 33, channels, dtype=dtype) for _ in range(2))
    weight = torch.rand(1, 2, 24, 33, dtype=torch.float64) + 0.1
    weight[:, 1] *= KEPT[kept](torch.arange(24)[:, None], torch.arange(33))
    weight = weight.flip(1) if direction == "backward" else weight
    options = dict(window=window, direction=direction, similarity=similarity, temperature=0.4, token_weight=weight)
    options["upstream"] = torch.tensor(1000.0, dtype=torch.float64)  # float16 has few digits for less
    loss = lgf.lgf_kl_loss
    if cached:
        loss = lgf.lgf_kl_loss_from_logits
        options["logits_direction"] = "forward"
        teacher = lgf.local_gram_flow(teacher.double(), window=window, similarity=similarity, backend="reference")
    against_reference(loss, student, [teacher], **options)


@pytest.mark.parametrize("window", [7, 5], ids=["tensor cores", "plain"])
def test_nothing_is_left_where_nothing_counts(model, window):
    """Features that only tokens of weight 0 see may be NaN; their values and their gradient are 0."""
    student, teacher = (features(1, 2, 40, 20, 16, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.zeros(1, 1, 40, 20)
    weight[:, :, :5] = 1
    student[:, :, 30:] = teacher[:, :, 30:] = torch.nan
    options = dict(window=window, token_weight=weight, reduction="none", direction="both")
    values, gradient = value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend="native", **options)
    clean = [f.nan_to_num() for f in (student, teacher)]
    truth = value_and_gradient(lgf.lgf_kl_loss, clean[0].double(), clean[1].double(), backend="reference", **options)
    assert_close(values, truth[0], 2e-6)
    assert_close(gradient, truth[1], GRADIENT[torch.bfloat16])


def test_skipped_tiles_cost_next_to_nothing(model):
    student, teacher = (features(1, 2, 64, 32, 64, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.zeros(1, 1, 64, 32)
    weight[:, :, :8] = 1

    def done(**options):
        return work(model, lambda: value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend="native", **options))[
            1
        ]

    *_, loads, products = done(token_weight=weight)
    *_, all_loads, all_products = done()
    assert 0 < loads < 0.25 * all_loads and 0 < products < 0.25 * all_products


def test_equal_student_and_teacher(model):
    f = features(1, 2, 9, 17, 16, dtype=torch.bfloat16)
    value, gradient = value_and_gradient(lgf.lgf_kl_loss, f, f.clone(), backend="native")
    assert value.abs() <= 1e-12 and not gradient.any()


@pytest.mark.parametrize("channels", [40, 7], ids=["tensor cores", "plain"])
def test_the_order_of_warps_changes_no_bit(model, channels):
    student, teachers = (features(1, 3, 9, 5, channels, dtype=torch.float16) for _ in range(2))
    results = []
    for reverse in (0, 1):
        model.lgf_model_reverse(reverse)
        results.append(value_and_gradient(lgf.lgf_kl_loss, student, teachers, backend="native", direction="both"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_too_many_teachers_are_refused(model):
    f = features(1, 2, 3, 4, 8)
    with pytest.raises(ValueError, match=r"at most 15 teachers, and there are 16"):
        lgf.lgf_kl_loss(f, [f] * 16, backend="native")


#: A GPU's multiprocessors and the shared memory of each in KiB, and the height of the tiles that they ask for.
GPUS = {"large grid": (1, 228, 8), "small grid": (1000, 228, 4), "A100": (1, 164, 16), "consumer GPU": (1, 100, 8)}


@every_value(gpu=GPUS.keys(), channels=(72, 264))
def test_the_work_is_what_the_report_counts(model, gpu, channels):
    """Every height of a tile, where it is taken, and right in each."""
    counts = pytest.importorskip("counted.gram_flow", reason="it counts Triton's kernels too")
    *properties, rows = GPUS[gpu]
    model.lgf_model_multiprocessors(*properties)
    student, teacher = (features(1, 3, 13, 18, channels, dtype=torch.bfloat16) for _ in range(2))
    against_reference(lgf.lgf_kl_loss, student, [teacher], direction="both", token_weight=torch.rand(1, 2, 13, 18))

    shape = counts.Shape(*student.shape, teachers=1)
    loss, done = work(model, lambda: lgf.lgf_kl_loss(student.requires_grad_(), teacher, backend="native"))
    blocks, copied, staged, loads, products = done
    forward = counts.band_forward(shape, rows)
    assert (blocks, copied, products) == (forward.blocks, forward.l2, forward.mma)
    assert staged + loads * 512 == forward.shared
    _, (blocks, copied, staged, loads, products) = work(model, loss.backward)
    backward = counts.band_backward(shape, min(rows, 8))
    assert (blocks, copied, products) == (backward.blocks, backward.l2, backward.mma)
    assert loads * 512 < backward.shared
