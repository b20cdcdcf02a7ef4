"""Bad arguments of patch cosine losses and of their frame weights."""

import pytest
import torch
from support.messages import check, refused
from support.numerics import features

import lgf_kernels as lgf

S = features(2, 3, 4, 6)
T = [features(2, 3, 4, 2), features(2, 3, 4, 4)]
C = lgf.crepa_frame_weight(3)

loss = lgf.patch_cosine_loss

BAD = {
    "student's kind": (lambda: loss([1.0], T), TypeError, ["`student`", "torch.Tensor", "list"]),
    "integers": (lambda: loss(S.int(), T), TypeError, ["`student`", "float32", "torch.int32", ".float()"]),
    "a number": (lambda: loss(S[0, 0, 0, 0], T), ValueError, ["`student`", "(..., C)", "got 0", "unsqueeze"]),
    "nothing": (lambda: loss(S[:0], [t[:0] for t in T]), ValueError, ["`student`", "empty", "(0, 3, 4, 6)"]),
    "no video": (
        lambda: loss(S[0, 0], [t[0, 0] for t in T], frame_weight=C), ValueError,
        ["`student`", "(B, F, ..., C)", "frame weights", "got 2", "unsqueeze"],
    ),
    "teachers' kind": (lambda: loss(S, {"dino": T[0]}), TypeError, ["`teachers`", "sequence of tensors", "dict"]),
    "no teachers": (lambda: loss(S, []), ValueError, ["`teachers`", "at least one"]),
    "sparse teacher": (lambda: loss(S, S.to_sparse()), TypeError, ["`teachers`", "dense", "to_dense()"]),
    "teacher's type": (lambda: loss(S, [T[0], T[1].int()]), TypeError, ["`teachers[1]`", "torch.int32"]),
    "teacher's shape": (
        lambda: loss(S, [T[0], T[1][:, :2]]), ValueError, ["`teachers[1]`", "(2, 3, 4, any)", "(2, 2, 4, 4)", "resample"],
    ),
    "teacher's rank": (lambda: loss(S, [T[0].flatten(0, 1), T[1]]), ValueError, ["`teachers[0]`", "(6, 4, 2)"]),
    "frames of the teachers": (
        lambda: loss(S, [T[0][:, :2], T[1]], frame_weight=C[:, :2]), ValueError,
        ["`teachers[1]`", "(B, K, ..., C_m) = (2, 2, 4, any)", "(2, 3, 4, 4)", "alike"],
    ),
    "one number of a teacher": (
        lambda: loss(S, [T[0][0, 0, 0], T[1]], frame_weight=C), ValueError, ["`teachers[0]`", "(2, any, 4, any)", "(2)"],
    ),
    "teacher that requires grad": (
        lambda: loss(S, [T[0], T[1].clone().requires_grad_()]), ValueError, ["`teachers[1]`", "requires grad", "etach"],
    ),
    "teacher's device": (lambda: loss(S, S.to("meta")), ValueError, ["`teachers`", "cpu", "meta", ".to("]),
    "channels": (lambda: loss(S, [T[0], T[0]]), ValueError, ["2 + 2 = 4", "got 6", "Project the student to 4 channels"]),
    "number of weights": (lambda: loss(S, T, teacher_weights=(1,)), ValueError, ["`teacher_weights`", "2 expected", "1"]),
    "negative weight": (lambda: loss(S, T, teacher_weights=(1, -1)), ValueError, ["`teacher_weights[1]`", ">= 0"]),
    "weights of 0": (lambda: loss(S, T, teacher_weights=(0, 0)), ValueError, ["`teacher_weights`", "all 0", "sum divides"]),
    "weights as a tensor": (
        lambda: loss(S, T, teacher_weights=torch.ones(2)), TypeError, ["`teacher_weights`", "tolist()"],
    ),
    "frame weights' shape": (
        lambda: loss(S, T, frame_weight=C[:2]), ValueError,
        ["`frame_weight`", "(F, K) = (3, 3)", "(2, 3)", "crepa_frame_weight(student.shape[1])"],
    ),
    "frame weights of fewer teachers' frames": (
        lambda: loss(S, [t[:, :2] for t in T], frame_weight=C), ValueError,
        ["(F, K) = (3, 2), got (3, 3)", "its columns the teachers'"],
    ),
    "frame weights' kind": (lambda: loss(S, T, frame_weight=[[1]]), TypeError, ["`frame_weight`", "Tensor", "list"]),
    "negative frame weights": (
        lambda: loss(S, T, frame_weight=-C), ValueError, ["patch_cosine_loss", "`frame_weight`", ">= 0", "clamp"],
    ),
    "frame weights that require grad": (
        lambda: loss(S, T, frame_weight=C.clone().requires_grad_()), ValueError, ["`frame_weight`", "requires grad"],
    ),
    "token weights' shape": (
        lambda: loss(S, T, token_weight=torch.ones(2, 3)), ValueError, ["`token_weight`", "(2, 3, 4)", "(2, 3)"],
    ),
    "negative token weights": (
        lambda: loss(S, T, token_weight=-torch.ones(2, 3, 4)), ValueError, ["`token_weight`", ">= 0", "-1"],
    ),
    "device of CREPA's weights": (
        lambda: lgf.crepa_frame_weight(3, device="gpu"), ValueError, ["crepa_frame_weight", "`device`", "'gpu'"],
    ),
    "token weights' device": (
        lambda: loss(S, T, token_weight=torch.ones(2, 3, 4, device="meta")), ValueError, ["`token_weight`", "meta"],
    ),
    "reduction": (lambda: loss(S, T, reduction="max"), ValueError, ["`reduction`", "'mean', 'sum', 'none'", "'max'"]),
    "backend": (lambda: loss(S, T, backend="fast"), ValueError, ["`backend`", "'fast'"]),
    "frames": (lambda: lgf.crepa_frame_weight(0), ValueError, ["crepa_frame_weight", "`num_frames`", "at least 1"]),
    "tau": (lambda: lgf.crepa_frame_weight(3, tau=0), ValueError, ["`tau`", "> 0"]),
    "a tau that is 0 in float32": (lambda: lgf.crepa_frame_weight(3, 1e-50), ValueError, ["`tau`", "at least 1.17", "1e-50"]),
    "a module's tau that is 0 in float32": (lambda: lgf.PatchCosineLoss("crepa", 1e-50), ValueError, ["`tau`", "1e-50"]),
    "neighbours": (lambda: lgf.crepa_frame_weight(3, neighbours=-1), ValueError, ["`neighbours`", "at least 0", "-1"]),
    "fractional neighbours": (lambda: lgf.crepa_frame_weight(3, neighbours=1.5), TypeError, ["`neighbours`", "int", "1.5"]),
    "form": (lambda: lgf.PatchCosineLoss("align"), ValueError, ["PatchCosineLoss", "`form`", "'repa', 'crepa'", "'align'"]),
    "module's weights": (lambda: lgf.PatchCosineLoss(teacher_weights=[0.0]), ValueError, ["PatchCosineLoss", "all 0"]),
    "module's tau": (lambda: lgf.PatchCosineLoss(tau=-1), ValueError, ["PatchCosineLoss", "`tau`"]),
    "module's backend": (lambda: lgf.PatchCosineLoss(backend="fast"), ValueError, ["`backend`", "'fast'"]),
    "module's student": (lambda: lgf.PatchCosineLoss("crepa")(S[0, 0], T), ValueError, ["PatchCosineLoss", "`student`"]),
    "a module's backend without a name": (
        lambda: lgf.PatchCosineLoss(backend=""), ValueError, ["PatchCosineLoss", "`backend`", "got ''"],
    ),
}  # fmt: skip


@refused(BAD)
def test_message(call, error, words):
    check(call, error, words)


def test_a_constant_that_requires_grad_is_fine_where_no_gradients_are_made():
    with torch.no_grad():
        loss(S, [t.clone().requires_grad_() for t in T])


@pytest.mark.parametrize("weights", [(3, 4), (1e308, 1e308)])
def test_weights_are_relative(weights):
    """Even those whose sum float64 does not hold."""
    scaled = loss(S, T, teacher_weights=[w / 10 for w in weights])
    torch.testing.assert_close(loss(S, T, teacher_weights=weights), scaled)
