"""Bad arguments of token relation losses and of their weights."""

import pytest
import torch
from support.messages import check, refused
from support.numerics import features

import lgf_kernels as lgf

S = features(2, 3, 4, 5, 6)
T = features(2, 3, 4, 5, 7)
C = lgf.moalign_pair_weight(3)

relation = lgf.token_relation_loss

BAD = {
    "sparse teacher": (lambda: relation(S, T.to_sparse(), pair_weight=C), TypeError, ["`teacher`", "dense", "to_dense()"]),
    "backend that cannot": (
        lambda: relation(S.to("meta"), T.to("meta"), pair_weight=C.to("meta"), backend="native"),
        ValueError, ["'native'", "cannot", "meta", "'portable'", "doctor"],
    ),
    "relation's rank": (lambda: relation(S[0, 0], T, pair_weight=C), ValueError, ["`student`", "(B, F, N, C)", "unflatten"]),
    "relation's type": (lambda: relation(S.int(), T, pair_weight=C), TypeError, ["`student`", "int32"]),
    "relation's empty batch": (lambda: relation(S[:0], T[:0], pair_weight=C), ValueError, ["`student`", "empty"]),
    "relation's teacher": (
        lambda: relation(S, T[:, :2], pair_weight=C), ValueError, ["`teacher`", "(2, 3, 4, 5, any)", "(2, 2, 4, 5, 7)"],
    ),
    "relation's teacher's rank": (
        lambda: relation(S, T.flatten(2, 3), pair_weight=C), ValueError, ["`teacher`", "(B, F, H, W, C)", "(2, 3, 20, 7)"],
    ),
    "relation's teacher that requires grad": (
        lambda: relation(S, T.clone().requires_grad_(), pair_weight=C), ValueError, ["`teacher`", "requires grad", "etach"],
    ),
    "pair weights' shape": (
        lambda: relation(S, T, pair_weight=torch.ones(3)), ValueError, ["`pair_weight`", "(F, F)", "(3, 3)", "(3)"],
    ),
    "pair weights for other frames": (
        lambda: relation(S, T, pair_weight=lgf.moalign_pair_weight(4)), ValueError,
        ["`pair_weight`", "(F, F) = (3, 3), got (4, 4)", "moalign_pair_weight(student.shape[1])", "videorepa_pair_weight("],
    ),
    "complex pair weights": (lambda: relation(S, T, pair_weight=C + 0j), TypeError, ["`pair_weight`", "real", "pair_weight.real"]),
    "device of MoAlign's weights": (
        lambda: lgf.moalign_pair_weight(3, device="gpu"), ValueError, ["moalign_pair_weight", "`device`", "'cuda'", "'gpu'"],
    ),
    "device of VideoREPA's weights": (
        lambda: lgf.videorepa_pair_weight(3, device="gpu"), ValueError, ["videorepa_pair_weight", "`device`", "'gpu'"],
    ),
    "device of the wrong kind": (
        lambda: lgf.videorepa_pair_weight(3, device=0.5), TypeError, ["videorepa_pair_weight", "`device`", "0.5"],
    ),
    "pair weights' kind": (lambda: relation(S, T, pair_weight=[[1]]), TypeError, ["`pair_weight`", "Tensor", "list"]),
    "negative pair weight": (lambda: relation(S, T, pair_weight=-C), ValueError, ["`pair_weight`", ">= 0", "clamp"]),
    "negative margin": (lambda: relation(S, T, pair_weight=C, margin=-0.1), ValueError, ["`margin`", ">= 0", "-0.1"]),
    "distance": (lambda: relation(S, T, pair_weight=C, distance="L2"), ValueError, ["`distance`", "'l2'", "'L2'"]),
    "negatives": (
        lambda: relation(S, T, pair_weight=C, negatives=True), ValueError, ["`negatives`", "'clamp-teacher'", "True"],
    ),
    "similarity": (
        lambda: relation(S, T, pair_weight=C, similarity="cos"), ValueError, ["`similarity`", "'cosine'", "'cos'"],
    ),
    "a margin of squares": (
        lambda: relation(S, T, pair_weight=C, margin=0.1, distance="l2"), ValueError, ["`margin`", "0.1", '"l1"'],
    ),
    "a margin of the form gram": (lambda: lgf.TokenRelationLoss("gram", margin=0.1), ValueError, ["`margin`", "0.1"]),
    "relation's reduction": (lambda: relation(S, T, pair_weight=C, reduction="max"), ValueError, ["`reduction`", "'max'"]),
    "frames": (lambda: lgf.moalign_pair_weight(0), ValueError, ["`num_frames`", "at least 1", "0"]),
    "frames that are a bool": (lambda: lgf.moalign_pair_weight(True), TypeError, ["`num_frames`", "int", "bool True"]),
    "frames of a form that are a bool": (
        lambda: lgf.videorepa_pair_weight(True), TypeError, ["`num_frames`", "int", "bool True"],
    ),
    "a tau that is a bool": (lambda: lgf.moalign_pair_weight(3, tau=True), TypeError, ["`tau`", "> 0", "bool True"]),
    "a margin that is a bool": (
        lambda: relation(S, T, pair_weight=C, margin=False), TypeError, ["`margin`", ">= 0", "bool False"],
    ),
    "tau": (lambda: lgf.moalign_pair_weight(3, tau=0), ValueError, ["`tau`", "> 0"]),
    "a tau that is 0 in float32": (lambda: lgf.moalign_pair_weight(3, 1e-50), ValueError, ["`tau`", "at least 1.17", "1e-50"]),
    "a module's tau that is 0 in float32": (lambda: lgf.TokenRelationLoss(tau=1e-50), ValueError, ["`tau`", "1e-50"]),
    "relations": (lambda: lgf.videorepa_pair_weight(3, "time"), ValueError, ["`relations`", "'temporal'", "'time'"]),
    "temporal relations of one frame": (
        lambda: lgf.videorepa_pair_weight(1, "temporal"), ValueError, ["`num_frames`", "at least 2", "spatial"],
    ),
    "form": (lambda: lgf.TokenRelationLoss("trd"), ValueError, ["`form`", "'moalign'", "'trd'"]),
    "form's margin": (lambda: lgf.TokenRelationLoss(margin=-1), ValueError, ["`margin`", ">= 0"]),
    "form's backend": (lambda: lgf.TokenRelationLoss(backend="fast"), ValueError, ["`backend`", "'fast'"]),
    "a module's backend without a name": (
        lambda: lgf.TokenRelationLoss(backend=""), ValueError, ["TokenRelationLoss", "`backend`", "got ''"],
    ),
}  # fmt: skip


@refused(BAD)
def test_message(call, error, words):
    check(call, error, words)


@pytest.mark.parametrize("relations", ["all", "spatial", "temporal"])
def test_pair_weights_are_float32_whatever_the_default(relations):
    torch.set_default_dtype(torch.float64)
    try:
        assert lgf.videorepa_pair_weight(3, relations).dtype == torch.float32
        assert lgf.moalign_pair_weight(3).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
