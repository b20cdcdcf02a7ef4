"""Losses of Local Gram Flow on every backend against the oracle: every option, ragged shapes, types, extremes."""

import pytest
import torch
import torch.nn.functional as F
from support import numerics
from support.numerics import assert_close, backends_of, double, features, relative_error, rounding, value_and_gradient
from support.pairs import every_pair, every_value

import lgf_kernels as lgf

pytestmark = pytest.mark.parametrize("backend", backends_of("lgf_kl"))

OPTIONS = {
    "similarity": ("cosine", "dot"), "boundary": ("exclude", "zero"), "divergence": ("kl", "l2"),
    "direction": ("forward", "backward", "both"), "reduction": ("mean", "sum", "none"),
}  # fmt: skip

#: (B, T, H, W, C): single rows, columns and channels, frames smaller than the window, wider than a tile, many channels.
SHAPES = [
    (1, 2, 1, 1, 1),
    (1, 2, 1, 9, 3),
    (2, 3, 9, 1, 17),
    (1, 4, 2, 3, 5),
    (2, 2, 5, 37, 8),
    (1, 3, 8, 16, 64),
    (1, 2, 3, 4, 2048),
    (3, 5, 7, 6, 31),
]


def against_reference(backend, student, teachers, loss=lgf.lgf_kl_loss, tolerance=1e-5, **options):
    """Compare loss and gradient with the oracle's, for a random upstream gradient."""
    shape = loss(student, teachers, backend="reference", **options).shape
    options |= dict(upstream=torch.randn(shape, dtype=torch.float64), value=tolerance, gradient=tolerance)
    numerics.against_reference(loss, student, teachers, backend=backend, **options)


@every_pair(dtype=(torch.float32, torch.float64), options=OPTIONS)
def test_every_option(backend, dtype, options):
    student = features(2, 3, 5, 6, 7, dtype=dtype)
    teachers = [features(2, 3, 5, 6, C, dtype=dtype) for C in (4, 9)]
    against_reference(
        backend, student, teachers, teacher_weights=[0.3, 0.9], window=5, temperature=0.4,
        token_weight=torch.rand(2, 2, 5, 6), tolerance=1e-5 if dtype == torch.float32 else 1e-12, **options,
    )  # fmt: skip


@every_pair(options=OPTIONS | {"direction": ("forward", "backward")})
def test_every_option_from_logits(backend, options):
    student = features(2, 3, 5, 6, 7)
    logits = [
        lgf.local_gram_flow(features(2, 3, 5, 6, 8), similarity=options["similarity"], direction=options["direction"])
        for _ in range(2)
    ]
    against_reference(
        backend, student, [logits[0].half(), logits[1]], lgf.lgf_kl_loss_from_logits, teacher_weights=[0.3, 0.9],
        temperature=0.4, token_weight=torch.rand(2, 2, 5, 6), **options,
    )  # fmt: skip


@pytest.mark.parametrize("boundary", ["exclude", "zero"])
@pytest.mark.parametrize("divergence", ["kl", "l2"])
def test_what_a_cache_holds_outside_the_frame_is_not_looked_at(backend, divergence, boundary):
    student, cache = features(1, 3, 5, 6, 7), lgf.local_gram_flow(features(1, 3, 5, 6, 8), backend="reference")
    broken = cache.where(lgf.local_window_mask(5, 6), torch.nan)
    results = [
        value_and_gradient(
            lgf.lgf_kl_loss_from_logits, student, given, divergence=divergence, boundary=boundary, backend=backend
        )
        for given in (cache, broken)
    ]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("window", range(1, 16, 2))
def test_every_window(backend, window):
    against_reference(backend, features(1, 2, 9, 11, 16), features(1, 2, 9, 11, 16), window=window, direction="both")


@every_value(shape=SHAPES, boundary=("exclude", "zero"))
def test_ragged_shapes(backend, boundary, shape):
    against_reference(backend, features(*shape), features(*shape[:4], 6), boundary=boundary, direction="both")


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_teachers_fuse_as_logits(backend, teachers):
    student = features(1, 3, 6, 7, 12)
    those = [features(1, 3, 6, 7, 5 + m) for m in range(teachers)]
    against_reference(backend, student, those)
    against_reference(backend, student, those, teacher_weights=[0.0] * (teachers - 1) + [0.7])


def eager(student, teacher, window=7, tau=0.1):
    """Return the loss as plain PyTorch computes it, in the type of the inputs throughout, summed over the tokens."""
    r = window // 2

    def logits(f):
        f = F.normalize(f, dim=-1, eps=1e-6)
        H, W = f.shape[2:4]
        keys = F.pad(f[:, 1:], (0, 0, r, r, r, r))
        shifts = [keys[:, :, y : y + H, x : x + W] for y in range(window) for x in range(window)]
        z = torch.stack([(f[:, :-1] * k).sum(-1) for k in shifts], -1)
        return (z / tau).masked_fill(~lgf.local_window_mask(H, W, window), -torch.inf)

    log_q, log_p = logits(student).log_softmax(-1), logits(teacher).log_softmax(-1)
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum()


@pytest.mark.parametrize("similar", [False, True], ids=["far", "near convergence"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_at_most_twice_as_far_off_as_eager(backend, dtype, similar):
    student = features(1, 4, 9, 10, 64, dtype=dtype)
    teacher = (student.double() + 0.05 * torch.randn(student.shape)).to(dtype) if similar else features(
        1, 4, 9, 10, 48, dtype=dtype
    )  # fmt: skip
    truth = value_and_gradient(
        lgf.lgf_kl_loss, student.double(), teacher.double(), reduction="sum", backend="reference"
    )
    ours = value_and_gradient(lgf.lgf_kl_loss, student, teacher, reduction="sum", backend=backend)
    theirs = value_and_gradient(eager, student, teacher)
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert relative_error(our, true) <= 2 * relative_error(their, true)
    assert relative_error(ours[0], truth[0]) <= 1e-5
    assert relative_error(ours[1], truth[1]) <= rounding(dtype, backend)


def test_types_and_channels_may_differ(backend):
    student = features(1, 3, 6, 7, 12, dtype=torch.bfloat16)
    teachers = [features(1, 3, 6, 7, 5), features(1, 3, 6, 7, 9, dtype=torch.float16), features(
        1, 3, 6, 7, 12, dtype=torch.float64)]  # fmt: skip
    against_reference(backend, student, teachers, tolerance=rounding(torch.bfloat16, backend))
    against_reference(backend, student.double(), teachers, tolerance=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_extreme_scales(backend, temperature, scale):
    student, teacher = scale * features(1, 3, 6, 7, 12), features(1, 3, 6, 7, 12) / scale
    against_reference(backend, student, teacher, temperature=temperature)


def test_saturated_softmax_stays_finite(backend):
    student, teacher = 30 * features(1, 3, 6, 7, 12), 30 * features(1, 3, 6, 7, 12)
    against_reference(backend, student, teacher, similarity="dot")


@pytest.mark.parametrize("norm", [0.0, 5e-7, 2e-6])
def test_vanishing_vectors(backend, norm):
    """Below a norm of 1e-6 a vector is divided by 1e-6, a constant: its gradient loses the projection."""
    student, teacher = features(1, 3, 5, 6, 8), features(1, 3, 5, 6, 8)
    student[0, 1, 2, 3] *= norm / student[0, 1, 2, 3].norm()
    teacher[0, 0, 1] = 0
    against_reference(backend, student, teacher)


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_norm_whose_square_overflows(backend, where):
    """As inf it would make every similarity of the token 0, and the loss finite and wrong. The CPU's kernels are right."""
    tensors = {"student": features(1, 3, 4, 5, 8), "teacher": features(1, 3, 4, 5, 8)}
    tensors[where][0, 1, 1, 2] *= 1e25
    truth = value_and_gradient(lgf.lgf_kl_loss, *double(list(tensors.values())), backend="reference")
    ours = value_and_gradient(lgf.lgf_kl_loss, *tensors.values(), backend=backend)
    for our, true in zip(ours, truth, strict=True):
        assert our.isnan().any() or relative_error(our, true) <= 1e-5
    assert lgf.lgf_kl_loss(*tensors.values(), backend="reference").isnan()


def test_near_convergence(backend):
    """The loss of a trained student is a small difference of large terms; it is still right to a thousandth."""
    teacher = features(1, 3, 9, 10, 64)
    student = teacher + 1e-3 * features(1, 3, 9, 10, 64)
    value = lgf.lgf_kl_loss(student, teacher, backend=backend)
    truth = lgf.lgf_kl_loss(student.double(), teacher.double(), backend="reference")
    assert 1e-6 < truth < 2e-6
    assert_close(value, truth, 1e-3)


def test_equal_features_have_no_divergence(backend):
    student = features(1, 3, 5, 6, 8)
    value, gradient = value_and_gradient(lgf.lgf_kl_loss, student, student.clone(), backend=backend)
    assert abs(value) < 1e-6 and gradient.abs().max() < 1e-6


@every_pair(
    bad=(torch.nan, torch.inf, -torch.inf), similarity=("cosine", "dot"), divergence=("kl", "l2"),
    where=("student", "teacher"), only=("a query", "a key"),
)  # fmt: skip
def test_not_a_number_in_is_not_a_number_out(backend, only, where, divergence, similarity, bad):
    frame = 0 if only == "a query" else 2
    tensors = {"student": features(1, 3, 16, 16, 8), "teacher": features(1, 3, 16, 16, 8)}
    tensors[where][0, frame, 8, 9, 3] = bad
    options = dict(similarity=similarity, divergence=divergence, backend=backend)
    assert lgf.lgf_kl_loss(tensors["student"], tensors["teacher"], **options).isnan()
    tokens = lgf.lgf_kl_loss(tensors["student"], tensors["teacher"], reduction="none", **options)[0]
    reach = torch.zeros(2, 16, 16, dtype=torch.bool)
    if frame == 0:
        reach[0, 8, 9] = True
    else:
        reach[1, 5:12, 6:13] = True
    assert tokens[~reach].isfinite().all()
    assert tokens[reach].isnan().any() and not tokens[reach].isinf().any()
    if bad != bad or similarity == "cosine":
        assert tokens[reach].isnan().all()


@pytest.mark.parametrize("layout", ["channels first", "sliced", "every other", "expanded"])
def test_strided_inputs(backend, layout):
    def strided():
        if layout == "channels first":
            return features(2, 3, 8, 5, 6).permute(0, 1, 3, 4, 2)
        if layout == "sliced":
            return features(2, 4, 6, 7, 12)[:, 1:, 1:, 1:, 2:10]
        if layout == "every other":
            return features(2, 3, 5, 6, 16)[..., ::2]
        return features(1, 3, 5, 6, 8).expand(2, 3, 5, 6, 8)

    student, teacher = strided(), strided()
    assert not student.is_contiguous()
    against_reference(backend, student, teacher)
    same = lgf.lgf_kl_loss(student, teacher, backend=backend)
    assert torch.equal(same, lgf.lgf_kl_loss(student.contiguous(), teacher.contiguous(), backend=backend))


def test_two_runs_are_bitwise_equal(backend):
    student, teacher = features(2, 3, 9, 10, 32), features(2, 3, 9, 10, 16)
    first = value_and_gradient(lgf.lgf_kl_loss, student, teacher, direction="both", backend=backend)
    second = value_and_gradient(lgf.lgf_kl_loss, student, teacher, direction="both", backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_subject_mask(backend):
    """A bool mask weighs tokens 0 and 1: the mean over the subject alone."""
    student, teacher = features(1, 3, 5, 6, 8), features(1, 3, 5, 6, 8)
    mask = torch.rand(1, 2, 5, 6) < 0.4
    tokens = lgf.lgf_kl_loss(student, teacher, reduction="none", backend=backend)
    torch.testing.assert_close(
        lgf.lgf_kl_loss(student, teacher, token_weight=mask, backend=backend), tokens[mask].mean()
    )
    against_reference(backend, student, teacher, token_weight=mask)


def test_loss_without_gradient_is_the_same(backend):
    student, teacher = features(1, 3, 5, 6, 8), features(1, 3, 5, 6, 8)
    with_gradient, _ = value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend=backend)
    assert torch.equal(lgf.lgf_kl_loss(student, teacher, backend=backend), with_gradient)
