"""The oracle of token relations against loops over Python floats, the papers' formulas, and gradcheck."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import features

import lgf_kernels as lgf


def loop_loss(z, m, c, margin):
    """loss of one video from nested lists z[f][i][channel], m[f][i][channel] and c[f][g]."""

    def unit(v):
        norm = max(math.sqrt(sum(x * x for x in v)), 1e-6)
        return [x / norm for x in v]

    def dot(u, v):
        return sum(a * b for a, b in zip(unit(u), unit(v), strict=True))

    frames, N = len(z), len(z[0])
    total = 0.0
    for f, g in itertools.product(range(frames), repeat=2):
        distances = [
            max(abs(dot(z[f][i], z[g][j]) - dot(m[f][i], m[g][j])) - margin, 0.0)
            for i, j in itertools.product(range(N), repeat=2)
        ]
        total += c[f][g] * sum(distances) / N**2
    return total


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_loss_equals_the_loops(margin):
    z, m = features(2, 3, 4, 3, dtype=torch.float64), features(2, 3, 4, 5, dtype=torch.float64)
    z[0, 1, 2] = 0
    z[1, :, 1] *= 5e-7  # a norm around the epsilon of 1e-6
    c = torch.rand(3, 3, dtype=torch.float64)
    c = c + c.T
    truth = [loop_loss(z[b].tolist(), m[b].tolist(), c.tolist(), margin) for b in range(2)]
    truth = torch.tensor(truth, dtype=torch.float64)
    for reduction, expected in [("none", truth), ("mean", truth.mean()), ("sum", truth.sum())]:
        loss = lgf.token_relation_loss(z, m, pair_weight=c, margin=margin, reduction=reduction, backend="reference")
        torch.testing.assert_close(loss, expected)


def test_rows_and_columns_flatten_to_tokens():
    z, m = features(1, 3, 2, 5, 4), features(1, 3, 2, 5, 6)
    c = lgf.moalign_pair_weight(3)
    grid = lgf.token_relation_loss(z, m, pair_weight=c, backend="reference")
    flat = lgf.token_relation_loss(z.flatten(2, 3), m.flatten(2, 3), pair_weight=c, backend="reference")
    assert torch.equal(grid, flat)


def moalign_eq8(z, m, tau):
    """MoAlign, equations 5 to 8, one video (F, N, C): a norm is the mean absolute error over all its entries."""
    z, m = F.normalize(z, dim=-1), F.normalize(m, dim=-1)
    frames, N, _ = z.shape
    spatial = sum((z[f] @ z[f].T - m[f] @ m[f].T).abs().mean() for f in range(frames)) / frames
    frame = torch.arange(frames).repeat_interleave(N)
    gap = (frame[:, None] - frame[None, :]).abs()
    weight = torch.where(gap == 0, 0.0, torch.exp(-gap.double() / tau))
    z, m = z.flatten(0, 1), m.flatten(0, 1)
    temporal = (weight * (z @ z.T) - weight * (m @ m.T)).abs().mean()
    return spatial + temporal


def videorepa_trd(z, m, margin, spatial, temporal):
    """VideoREPA's token relation distillation, one video (F, N, C): relations of every frame to every frame.

    Spatial keeps the frame with itself, temporal the frame with the others, both average over what they keep.
    """
    z, m = F.normalize(z, dim=-1), F.normalize(m, dim=-1)
    difference = torch.einsum("fic,gjc->fgij", z, z) - torch.einsum("fic,gjc->fgij", m, m)
    distance = F.relu(difference.abs() - margin)
    same = torch.eye(len(z), dtype=torch.bool)
    keep = (same & spatial) | (~same & temporal)
    return distance[keep].mean()


@pytest.mark.parametrize(
    ("form", "paper"),
    [
        ("moalign", lambda z, m: moalign_eq8(z, m, tau=10.0)),
        ("videorepa", lambda z, m: videorepa_trd(z, m, 0.1, spatial=True, temporal=True)),
        ("videorepa-spatial", lambda z, m: videorepa_trd(z, m, 0.1, spatial=True, temporal=False)),
        ("videorepa-temporal", lambda z, m: videorepa_trd(z, m, 0.1, spatial=False, temporal=True)),
    ],
)
def test_published_forms(form, paper):
    z, m = features(2, 4, 5, 3, dtype=torch.float64), features(2, 4, 5, 6, dtype=torch.float64)
    truth = torch.stack([paper(z[b], m[b]) for b in range(2)]).mean()
    loss = lgf.TokenRelationLoss(form, backend="reference")(z, m)
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_gradient_is_the_derivative(margin):
    z = features(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    m = features(2, 3, 4, 5, dtype=torch.float64)
    c = lgf.moalign_pair_weight(3)
    assert torch.autograd.gradcheck(
        lambda s: lgf.token_relation_loss(s, m, pair_weight=c, margin=margin, backend="reference"), z
    )
