"""The oracle of patch cosine against loops over Python floats, what one would write in PyTorch, and gradcheck."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import features

import lgf_kernels as lgf

loss = lgf.patch_cosine_loss


def unit(v):
    norm = max(math.sqrt(sum(x * x for x in v)), 1e-6)
    return [x / norm for x in v]


def loop_distance(h, teachers, weights):
    """1 - cosine of lists of channels: the student's, and those of each teacher."""
    y = [math.sqrt(w / sum(weights)) * x for w, teacher in zip(weights, teachers, strict=True) for x in unit(teacher)]
    return 1 - sum(a * b for a, b in zip(unit(h), y, strict=True))


def videos():
    """Student (2, 3, 4, 5) and teachers (2, 3, 4, 2 and 3), with vectors of length 0 and around the epsilon of 1e-6."""
    student, one, other = (features(2, 3, 4, C, dtype=torch.float64) for C in (5, 2, 3))
    student[0, 1, 2] = one[1, 1, 1] = 0
    student[1, 0] *= 5e-7
    other[0, 2] *= 5e-7
    return student, [one, other]


@pytest.mark.parametrize("weights", [None, (0.5, 2.0), (1.0, 0.0)])
def test_distances_equal_the_loops(weights):
    student, teachers = videos()
    a = torch.rand(2, 3, 4, dtype=torch.float64)
    rows = [
        loop_distance(h, parts, weights or (1, 1))
        for h, *parts in zip(*(f.flatten(0, 2).tolist() for f in (student, *teachers)), strict=True)
    ]
    truth = torch.tensor(rows, dtype=torch.float64).view(2, 3, 4)
    options = dict(teacher_weights=weights, backend="reference")
    torch.testing.assert_close(loss(student, teachers, reduction="none", **options), truth)
    torch.testing.assert_close(loss(student, teachers, **options), truth.mean())
    weighted = loss(student, teachers, token_weight=a, **options)
    torch.testing.assert_close(weighted, (a * truth).sum() / a.sum())
    weighted = loss(student, teachers, token_weight=a, reduction="sum", **options)
    torch.testing.assert_close(weighted, (a * truth).sum())


def test_frames_equal_the_loops():
    student, teachers = videos()
    teachers = [teacher[:, :2] for teacher in teachers]
    c = torch.tensor([[1.0, 0.5], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    truth = torch.zeros(2, 3, 4, dtype=torch.float64)
    for b, f, k, n in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 4))).tolist():
        parts = [teacher[b, k, n].tolist() for teacher in teachers]
        truth[b, f, n] += c[f, k] * loop_distance(student[b, f, n].tolist(), parts, (1, 1))
    values = loss(student, teachers, frame_weight=c, reduction="none", backend="reference")
    torch.testing.assert_close(values, truth)


def test_one_teacher_is_repa():
    student, teacher = features(2, 3, 4, 5, 6), features(2, 3, 4, 5, 6)
    ours = loss(student, teacher, backend="reference")
    torch.testing.assert_close(ours, 1 - F.cosine_similarity(student, teacher, dim=-1).mean())


def test_two_teachers_are_align4gen():
    """Normalised each, then concatenated: a teacher's scale is no weight, and the student's length is shared."""
    student, (one, other) = features(2, 7, 9), (features(2, 7, 5), features(2, 7, 4))
    joint = torch.cat([F.normalize(one, dim=-1), F.normalize(other, dim=-1)], -1)
    truth = (1 - F.cosine_similarity(student, joint, dim=-1)).mean()
    torch.testing.assert_close(loss(student, [one, 100 * other], backend="reference"), truth)


def test_frames_are_crepa():
    """Its term, from which a constant is missing, divided by the frames."""
    student, teacher = features(2, 4, 5, 6), features(2, 4, 5, 6)
    s, y = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    term = 0
    for f in range(4):
        term -= (s[:, f] * y[:, f]).sum(-1).mean()
        for k in (f - 1, f + 1):
            if 0 <= k < 4:
                term -= math.exp(-1) * (s[:, f] * y[:, k]).sum(-1).mean()
    weight = lgf.crepa_frame_weight(4)
    ours = loss(student, teacher, frame_weight=weight, backend="reference")
    torch.testing.assert_close(ours, (weight.sum() + term) / 4)


def test_frame_weights():
    weight = lgf.crepa_frame_weight(4, tau=2.0, neighbours=2)
    for f in range(4):
        for k in range(4):
            expected = math.exp(-abs(f - k) / 2) if abs(f - k) <= 2 else 0
            assert weight[f, k].item() == pytest.approx(expected)
    assert torch.equal(lgf.crepa_frame_weight(3, neighbours=0), torch.eye(3))
    assert torch.equal(lgf.crepa_frame_weight(3, tau=math.inf, neighbours=5), torch.ones(3, 3))
    assert torch.equal(lgf.crepa_frame_weight(3, tau=math.inf, neighbours=10**30), torch.ones(3, 3))


def test_the_module_is_the_function_with_its_weights():
    student, teacher = features(2, 4, 5, 6), features(2, 4, 5, 6)
    assert torch.equal(lgf.PatchCosineLoss()(student, teacher), loss(student, teacher))
    weight = lgf.crepa_frame_weight(4, 3.0, 2)
    module = lgf.PatchCosineLoss("crepa", 3.0, 2, reduction="sum", teacher_weights=(2,))
    a = torch.rand(2, 4, 5)
    expected = loss(student, teacher, frame_weight=weight, token_weight=a, reduction="sum")
    assert torch.equal(module(student, teacher, a), expected)
    assert "crepa" in repr(module) and "tau=3.0" in repr(module)


@pytest.mark.parametrize("frames", [False, True])
def test_gradcheck(frames):
    student = features(2, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    teachers = [features(2, 3, 2, 2, dtype=torch.float64), features(2, 3, 2, 3, dtype=torch.float64)]
    options = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}
    options |= dict(teacher_weights=(1, 3), token_weight=torch.rand(2, 3, 2), backend="reference")
    assert torch.autograd.gradcheck(lambda s: loss(s, teachers, **options), student)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teachers, **options), student)
