"""Squared token relations by products of channels, against tiles of pairs and the oracle."""

import pytest
import torch
from support.numerics import assert_close, features, relative_error, value_and_gradient

import lgf_kernels as lgf
from lgf_kernels.token_relation import channel_grams
from lgf_kernels.token_relation.options import RelationOptions

WEIGHTS = {
    "all alike": torch.full((4, 4), 0.3),
    "spatial": lgf.videorepa_pair_weight(4, "spatial"),
    "moalign": lgf.moalign_pair_weight(4),
    "not symmetric": torch.arange(16.0).view(4, 4),
    "a frame without": torch.tensor([1.0, 1, 0, 1]).outer(torch.tensor([1.0, 1, 0, 1])),
}


@pytest.fixture
def by_channels(monkeypatch):
    """Let every call be computed by products of channels."""
    monkeypatch.setattr(channel_grams, "is_faster", lambda *_: True)


def loss(student, teacher, c, backend="portable", **options):
    return value_and_gradient(
        lgf.token_relation_loss, student, teacher, pair_weight=c, distance="l2", backend=backend, **options
    )


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("c", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("room", [1, 100, 2**20], ids="room for {}".format)
def test_against_the_oracle(by_channels, monkeypatch, room, c, similarity):
    monkeypatch.setattr(channel_grams, "SUMS", room)
    student, teacher = features(2, 4, 30, 7), features(2, 4, 30, 5)
    ours = loss(student, teacher, c, similarity=similarity)
    truth = loss(student.double(), teacher.double(), c, "reference", similarity=similarity)
    assert_close(ours[0], truth[0], 1e-6)
    assert_close(ours[1], truth[1], 1e-6)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_near_convergence_it_is_as_exact_as_tiles(monkeypatch, distance):
    teacher = features(1, 4, 200, 32) + 1.5 * features(32)
    student = teacher + distance * features(*teacher.shape)
    c = lgf.videorepa_pair_weight(4)
    truth = loss(student.double(), teacher.double(), c, "reference")
    errors = []
    for by_channels in (True, False):
        monkeypatch.setattr(channel_grams, "is_faster", lambda *_, it=by_channels: it)
        errors.append([relative_error(*pair) for pair in zip(loss(student, teacher, c), truth, strict=True)])
    assert all(ours <= 2 * tiles + 2e-7 for ours, tiles in zip(*errors, strict=True)), errors


def test_equal_features_differ_by_nothing(by_channels):
    student = features(1, 4, 100, 16)
    value, gradient = loss(student, student.clone(), WEIGHTS["moalign"])
    assert 0 <= value <= 1e-15 and gradient.abs().max() <= 1e-12


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_frame_without_weight_adds_nothing(by_channels, where):
    tensors = {"student": features(1, 4, 30, 6), "teacher": features(1, 4, 30, 6)}
    expected = lgf.token_relation_loss(**tensors, pair_weight=WEIGHTS["a frame without"], distance="l2")
    tensors[where][0, 2] = torch.nan
    assert torch.equal(
        lgf.token_relation_loss(**tensors, pair_weight=WEIGHTS["a frame without"], distance="l2"), expected
    )
    assert lgf.token_relation_loss(**tensors, pair_weight=WEIGHTS["spatial"], distance="l2").isnan()


def test_what_is_computed_so():
    def chosen(tokens=400, channels=16, c=WEIGHTS["moalign"], dtype=torch.float32, isa=None, **options):
        z = torch.empty(1, 4 * tokens, channels, dtype=dtype)
        return channel_grams.is_faster(z, z, c, RelationOptions(**{"distance": "l2", **options}), True, isa)

    assert chosen() and chosen(similarity="dot")
    assert not chosen(tokens=8)
    assert not chosen(distance="l1") and not chosen(negatives="clamp") and not chosen(negatives="clamp-teacher")
    assert not chosen(dtype=torch.float64)
    assert chosen(tokens=60) and not chosen(tokens=60, c=WEIGHTS["spatial"])  # a quarter of the pairs
    # Tiles gain more from wide vectors than float64 does.
    assert chosen(tokens=40) and chosen(tokens=40, isa="avx2") and not chosen(tokens=40, isa="avx512")
