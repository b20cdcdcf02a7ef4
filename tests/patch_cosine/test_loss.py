"""Every backend of patch cosine against the oracle: every option, ragged shapes, types, strides, extremes, what is kept."""

import pytest
import torch
import torch.nn.functional as F
from support.numerics import (
    against_reference,
    assert_close,
    backends_of,
    double,
    features,
    relative_error,
    rounding,
    value_and_gradient,
)
from support.pairs import every_pair, every_value

import lgf_kernels as lgf
from lgf_kernels.patch_cosine import portable

pytestmark = pytest.mark.parametrize("backend", backends_of("patch_cosine"))
loss = lgf.patch_cosine_loss

OPTIONS = {
    "teacher_weights": (None, (0.5, 2.0), (1.0, 0.0)),
    "reduction": ("mean", "sum", "none"),
    "tokens": (False, True),
    "frames": (None, "crepa", "others"),
}


def upstream_of(student, reduction):
    return torch.randn(student.shape[:-1] if reduction == "none" else (), dtype=torch.float64)


def frame_weights(frames, F, K):
    """Return CREPA's weights, or those of other frames: far ones, one row and one column of zeros, sums beyond 1."""
    if frames == "crepa":
        return lgf.crepa_frame_weight(max(F, K))[:F, :K]
    weight = 3 * torch.rand(F, K)
    weight[0] = weight[:, K // 2] = 0
    return weight


@every_pair(dtype=(torch.float32, torch.float64), options=OPTIONS)
def test_every_option(backend, dtype, options):
    student, teachers = features(2, 4, 3, 5, 7, dtype=dtype), [features(2, 4, 3, 5, C, dtype=dtype) for C in (4, 3)]
    options = dict(options)
    frames, tokens = options.pop("frames"), options.pop("tokens")
    if frames:
        options["frame_weight"] = frame_weights(frames, 4, 4)
    if tokens:
        options["token_weight"] = torch.rand(2, 4, 3, 5).where(torch.rand(2, 4, 3, 5) > 0.3, 0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    upstream = upstream_of(student, options["reduction"])
    against_reference(
        loss, student, teachers, backend=backend, value=tolerance, gradient=tolerance, upstream=upstream, **options
    )


#: Student's shape before the channels, and the channels of the teachers: single tokens and channels, more than a block has
#: and no multiples of it, no dimension before the channels and more than four.
SHAPES = [
    ((), (3,)),
    ((1,), (1,)),
    ((37,), (5, 17)),
    ((3, 70), (16, 1, 2)),
    ((2, 1, 9), (300,)),
    ((2, 3, 1, 5), (64, 32)),
    ((2, 3, 2, 1, 4), (6, 2)),
    ((1, 2, 3, 1, 2, 5), (8,)),
]


@pytest.mark.parametrize(("shape", "channels"), SHAPES, ids=str)
def test_ragged_shapes(backend, shape, channels):
    student, teachers = features(*shape, sum(channels)), [features(*shape, C) for C in channels]
    for reduction in ("mean", "none"):
        upstream = upstream_of(student, reduction)
        against_reference(
            loss, student, teachers, backend=backend, absolute=2e-7, reduction=reduction, upstream=upstream
        )


@pytest.mark.parametrize(
    ("shape", "frames", "channels"),
    [
        ((2, 3), 5, (4,)),
        ((1, 1, 33), 1, (7, 9)),
        ((2, 5, 9), 2, (300,)),
        ((1, 3, 2, 4), 20, (8, 3)),
        ((1, 2, 3, 2, 5), 3, (16,)),
    ],
    ids=str,
)
def test_ragged_frames(backend, shape, frames, channels):
    """Fewer frames of the teachers than of the student, and more."""
    student = features(*shape, sum(channels))
    teachers = [features(shape[0], frames, *shape[2:], C) for C in channels]
    weight = frame_weights("others", shape[1], frames)
    weight[-1, 0] = 1
    upstream = upstream_of(student, "none")
    against_reference(
        loss, student, teachers, backend=backend, frame_weight=weight, reduction="none", upstream=upstream
    )


def eager(student, teachers, weights=(1, 1), frame_weight=None, **_):
    """What one would write: normalise, concatenate, cosine, in float32 as trainers do."""
    parts = [w * F.normalize(t.float(), dim=-1, eps=1e-6) for w, t in zip(weights, teachers, strict=True)]
    y, s = torch.cat(parts, -1), F.normalize(student.float(), dim=-1, eps=1e-6)
    y = y / sum(w * w for w in weights) ** 0.5
    if frame_weight is None:
        return 1 - (s * y).sum(-1).mean()
    folded = torch.einsum("fk,bk...c->bf...c", frame_weight, y)
    return frame_weight.sum() / student.shape[1] - (s * folded).sum(-1).mean()


@every_value(dtype=(torch.bfloat16, torch.float16, torch.float32), frames=(False, True))
def test_at_most_twice_as_far_off_as_eager(backend, dtype, frames):
    student, teachers = features(1, 4, 9, 10, 96), [features(1, 4, 9, 10, C) for C in (64, 32)]
    student = (student + torch.cat(teachers, -1)).to(dtype)
    teachers = [teacher.to(dtype) for teacher in teachers]
    options = dict(frame_weight=lgf.crepa_frame_weight(4)) if frames else {}
    options["upstream"] = torch.tensor(360.0)  # without which float16 rounds the gradient to subnormal numbers
    truth = value_and_gradient(loss, student.double(), double(teachers), backend="reference", **options)
    ours = value_and_gradient(loss, student, teachers, backend=backend, **options)
    theirs = value_and_gradient(eager, student, teachers, **options)
    toward_zero = rounding(dtype, backend) > rounding(dtype, "portable")
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert relative_error(our, true) <= max((3 if toward_zero else 2) * relative_error(their, true), 5e-7)
    if dtype != torch.float32:
        assert relative_error(ours[0], truth[0]) <= 1e-6
        assert relative_error(ours[1], truth[1]) <= 1.5 * rounding(dtype, backend)


@every_value(
    dtype=(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    teacher=(torch.float16, torch.float32, torch.float64, torch.bfloat16),
)
def test_types_of_teachers_may_differ(backend, dtype, teacher):
    student = features(2, 19, 40, dtype=dtype)
    teachers = [features(2, 19, 24, dtype=teacher), features(2, 19, 16)]
    gradient = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1.5 * rounding(dtype, backend))
    value = 1e-12 if dtype == torch.float64 else 1e-5
    against_reference(loss, student, teachers, backend=backend, value=value, gradient=gradient)


@pytest.mark.parametrize("upstream", [2.0**16, 2.0**-10])
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_float16_keeps_its_range(backend, size, upstream):
    """A loss that is scaled against underflow, or was not, and features of any length: what is kept is neither 0 nor inf."""
    student, teacher = (size * features(3, 50, 32)).half(), features(3, 50, 32, dtype=torch.float16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss(student.clone().requires_grad_(), teacher, backend=backend)
    (gradient,) = (x for x in kept if x.dtype == torch.float16)
    assert (gradient.abs() <= 1.001).all() and (gradient != 0).float().mean() > 0.99
    value, ours = value_and_gradient(loss, student, teacher, backend=backend, upstream=torch.tensor(upstream))
    truth = value_and_gradient(
        loss, student.double(), teacher.double(), backend="reference", upstream=torch.tensor(upstream)
    )
    assert_close(value, truth[0], 1e-5)
    assert_close(ours, truth[1], 1.5 * rounding(torch.float16, backend), absolute=6e-8)


@pytest.mark.parametrize("layout", ["channels first", "sliced", "every other", "expanded"])
def test_strided_inputs(backend, layout):
    def of(C):
        if layout == "channels first":
            return features(1, 3, C, 3, 4).permute(0, 1, 3, 4, 2)
        if layout == "sliced":
            return features(1, 4, 4, 5, C + 4)[:, 1:, 1:, 1:, 2 : C + 2]
        if layout == "every other":
            return features(1, 3, 3, 4, 2 * C)[..., ::2]
        return features(1, 3, 1, 4, C).expand(1, 3, 3, 4, C)

    student, teachers = of(8), [of(5), of(3)]
    assert not any(x.is_contiguous() for x in (student, *teachers))
    weight, contiguous = torch.rand(4, 3, 3, 1).permute(3, 2, 1, 0), [x.contiguous() for x in teachers]
    for options in ({}, {"frame_weight": lgf.crepa_frame_weight(3)}):
        options |= dict(token_weight=weight)
        against_reference(loss, student, teachers, backend=backend, **options)
        options |= dict(reduction="none", backend=backend)
        same = loss(student.contiguous(), contiguous, **options)
        assert torch.equal(loss(student, teachers, **options), same)


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("norm", [0.0, 5e-7, 2e-6])
def test_vanishing_vectors(backend, norm, frames):
    """Below a norm of 1e-6 a vector is divided by 1e-6, a constant: the student's gradient loses its part along it."""
    student, teachers = features(2, 3, 4, 8), [features(2, 3, 4, C) for C in (5, 3)]
    for f in (student, *teachers):
        f[0, 1, 2] *= norm / f[0, 1, 2].norm()
    teachers[1][1, 0, 3] = 0
    options = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}
    against_reference(loss, student, teachers, backend=backend, **options)


@pytest.mark.parametrize("scale", [1e-12, 1e3, 1e12])
def test_scales(backend, scale):
    student, teachers = features(2, 3, 4, 8), [scale * features(2, 3, 4, 8)]
    against_reference(loss, student, teachers, backend=backend)
    against_reference(loss, scale * student, features(2, 3, 4, 8), backend=backend)


@every_pair(bad=(torch.nan, torch.inf, -torch.inf), frames=(False, True), where=("student", "teacher"))
def test_not_a_number_in_is_not_a_number_out(backend, where, frames, bad):
    """In the tokens that read it, and no others."""
    student, teachers = features(1, 4, 3, 17, 12), [features(1, 4, 3, 17, C) for C in (8, 4)]
    (student if where == "student" else teachers[1])[0, 1, 2, 5, 3] = bad
    weight = lgf.crepa_frame_weight(4)
    options = dict(frame_weight=weight, backend=backend) if frames else dict(backend=backend)
    values, gradient = value_and_gradient(loss, student, teachers, reduction="none", **options)
    expected = torch.zeros(1, 4, 3, 17, dtype=torch.bool)
    expected[0, : 3 if frames and where == "teacher" else 2, 2, 5] = True
    if not frames or where == "student":
        expected[0, 0] = False
    assert torch.equal(values.isnan(), expected) and not values.isinf().any()
    assert torch.equal(gradient.isnan().any(-1), expected)
    value, gradient = value_and_gradient(loss, student, teachers, **options)
    assert value.isnan() and gradient.isnan().any()


def test_a_norm_that_overflows_is_not_a_distance(backend):
    """It is NaN, or the right number where a backend has the room; never that of a vector of length 0."""
    student, teacher = features(1, 3, 8), features(1, 3, 8)
    for f, g in ((1e25 * student, teacher), (student, 1e25 * teacher)):
        values = loss(f, g, reduction="none", backend=backend)
        truth = loss(f.double(), g.double(), reduction="none", backend="reference")
        assert values.isnan().all() or relative_error(values, truth) < 1e-5


def test_frames_without_weight_are_no_part_of_the_loss(backend):
    student, teacher = features(2, 4, 3, 5, 6), features(2, 4, 3, 5, 6)
    weight = frame_weights("others", 4, 4)  # without the student's first frame and the teacher's third
    plain = value_and_gradient(loss, student, teacher, frame_weight=weight, backend=backend)
    teacher[:, 2] = torch.nan
    again = value_and_gradient(loss, student, teacher, frame_weight=weight, backend=backend)
    assert all(map(torch.equal, plain, again)) and plain[0].isfinite()
    student[:, 0] = torch.inf
    assert torch.equal(loss(student, teacher, frame_weight=weight, backend=backend), plain[0])
    values = loss(student, teacher, frame_weight=weight, reduction="none", backend=backend)
    assert (values[:, 0] == 0).all()


def test_all_zero_weights_are_nothing_over_nothing(backend):
    student, teacher, nothing = features(2, 3, 4, 6), features(2, 3, 4, 6), torch.zeros(2, 3, 4)
    assert loss(student, teacher, token_weight=nothing, backend=backend).isnan()
    value, gradient = value_and_gradient(
        loss, student, teacher, token_weight=nothing, reduction="sum", backend=backend
    )  # fmt: skip
    assert value == 0 and (gradient == 0).all()
    value, gradient = value_and_gradient(loss, student, teacher, frame_weight=torch.zeros(3, 3), backend=backend)
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("weights", [torch.bool, torch.float16, torch.int32], ids=str)
def test_types_of_weights(backend, weights):
    student, teacher = features(2, 3, 4, 6), features(2, 3, 4, 6)
    tokens, frames = (4 * torch.rand(2, 3, 4)).to(weights), (4 * lgf.crepa_frame_weight(3)).to(weights)
    against_reference(loss, student, teacher, backend=backend, token_weight=tokens, frame_weight=frames)


def test_frames_with_weights_of_one_each_are_those_without(backend):
    student, teachers = features(2, 3, 4, 5, 9), [features(2, 3, 4, 5, C) for C in (4, 5)]
    plain = value_and_gradient(loss, student, teachers, backend=backend)
    alone = value_and_gradient(loss, student, teachers, frame_weight=torch.eye(3), backend=backend)
    torch.testing.assert_close(alone, plain)


def test_teachers_may_change_places_with_their_channels(backend):
    student, (one, other) = features(2, 3, 4, 9), (features(2, 3, 4, 4), features(2, 3, 4, 5))
    plain = value_and_gradient(loss, student, [one, other], teacher_weights=(1, 3), backend=backend)
    moved = value_and_gradient(
        loss, student.roll(5, -1), [other, one], teacher_weights=(3, 1), backend=backend
    )  # fmt: skip
    torch.testing.assert_close(moved[0], plain[0])
    torch.testing.assert_close(moved[1].roll(-5, -1), plain[1])


def test_a_teacher_of_weight_0_has_no_part_in_the_gradient_but_the_length(backend):
    student, (one, other) = features(7, 9), (features(7, 4), features(7, 5))
    _, gradient = value_and_gradient(loss, student, [one, other], teacher_weights=(1, 0), backend=backend)
    along = F.normalize(student, dim=-1)
    tangent = gradient[:, 4:] / along[:, 4:]
    torch.testing.assert_close(tangent, tangent[:, :1].expand_as(tangent), rtol=1e-4, atol=1e-6)
    assert F.cosine_similarity(gradient, student, dim=-1).abs().max() < 1e-5


@pytest.mark.parametrize("frames", [False, True])
def test_two_runs_are_bitwise_equal(backend, frames):
    student, teacher = features(1, 3, 9, 10, 72, dtype=torch.bfloat16), features(1, 3, 9, 10, 72)
    options = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}
    first, second = (value_and_gradient(loss, student, teacher, backend=backend, **options) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_is_kept(backend, dtype, frames):
    """The gradient in the student's type and a number a token: in half precision 2.1 bytes an element; no input."""
    student, teachers = features(1, 3, 5, 6, 96, dtype=dtype), [features(1, 3, 5, 6, C, dtype=dtype) for C in (64, 32)]
    options, kept = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss(student.requires_grad_(), teachers, backend=backend, **options)
    size = sum(x.untyped_storage().nbytes() for x in kept)
    number = 8 if dtype == torch.float64 else 4
    assert size == student.numel() * dtype.itemsize + 90 * number
    assert dtype != torch.bfloat16 or size <= 2.1 * student.numel()


@pytest.mark.parametrize("frames", [False, True])
def test_loss_without_gradient_is_the_same(backend, frames):
    student, teachers = features(2, 3, 4, 5, 9), [features(2, 3, 4, 5, C) for C in (4, 5)]
    options = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}
    with_gradient, _ = value_and_gradient(loss, student, teachers, backend=backend, **options)
    assert torch.equal(loss(student, teachers, backend=backend, **options), with_gradient)


def test_a_step_along_the_gradient_lowers_the_loss(backend):
    student, teacher = features(2, 3, 4, 9), features(2, 3, 4, 9)
    value, gradient = value_and_gradient(loss, student, teacher, backend=backend)
    assert loss(student - 0.1 * gradient / gradient.norm(), teacher, backend=backend) < value


@every_value(most=(1, 2000, 20000), frames=(True, False))
def test_chunks(backend, most, frames, monkeypatch):
    """Of single tokens, some of a row, and some rows: the bits of a token do not depend on who shares its chunk."""
    student, teachers = features(2, 3, 4, 5, 9), [features(2, 3, 4, 5, C) for C in (4, 5)]
    options = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}
    options |= dict(reduction="none", backend=backend)
    whole = value_and_gradient(loss, student, teachers, **options)
    monkeypatch.setattr(portable, "CHUNK_BYTES", {"cpu": most})
    torch.testing.assert_close(value_and_gradient(loss, student, teachers, **options), whole)
