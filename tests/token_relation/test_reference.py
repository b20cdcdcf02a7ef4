"""The oracle of token relations against loops over Python floats, the papers' formulas, and gradcheck."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import features
from support.pairs import name_of

import lgf_kernels as lgf


def loop_loss(z, m, c, margin=0.0, distance="l1", negatives="keep", similarity="cosine"):
    """loss of one video from nested lists z[f][i][channel], m[f][i][channel] and c[f][g]."""

    def scaled(v):
        norm = max(math.sqrt(sum(x * x for x in v)), 1e-6)
        return [x / norm for x in v] if similarity == "cosine" else v

    def related(u, v, least):
        return max(sum(a * b for a, b in zip(scaled(u), scaled(v), strict=True)), least)

    least_z = 0.0 if negatives == "clamp" else -math.inf
    least_m = -math.inf if negatives == "keep" else 0.0
    power = {"l1": 1, "l2": 2}[distance]

    frames, N = len(z), len(z[0])
    total = 0.0
    for f, g in itertools.product(range(frames), repeat=2):
        distances = [
            max(abs(related(z[f][i], z[g][j], least_z) - related(m[f][i], m[g][j], least_m)) - margin, 0.0) ** power
            for i, j in itertools.product(range(N), repeat=2)
        ]
        total += c[f][g] * sum(distances) / N**2
    return total


OPTIONS = [
    {},
    {"margin": 0.1},
    {"margin": 0.1, "negatives": "clamp", "similarity": "dot"},
    *(
        {"distance": "l2", "negatives": negatives, "similarity": similarity}
        for negatives, similarity in itertools.product(("keep", "clamp", "clamp-teacher"), ("cosine", "dot"))
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_loss_equals_the_loops(options):
    z, m = features(2, 3, 4, 3, dtype=torch.float64), features(2, 3, 4, 5, dtype=torch.float64)
    z[0, 1, 2] = 0
    z[1, :, 1] *= 5e-7  # a norm around the epsilon of 1e-6
    c = torch.rand(3, 3, dtype=torch.float64)
    c = c + c.T
    truth = [loop_loss(z[b].tolist(), m[b].tolist(), c.tolist(), **options) for b in range(2)]
    truth = torch.tensor(truth, dtype=torch.float64)
    for reduction, expected in [("none", truth), ("mean", truth.mean()), ("sum", truth.sum())]:
        loss = lgf.token_relation_loss(z, m, pair_weight=c, reduction=reduction, backend="reference", **options)
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
        ("gram", lambda z, m: gram_loss(z, m, True, False, -torch.inf, -torch.inf)),
        ("gram-clamped", lambda z, m: gram_loss(z, m, True, False, 0.0, 0.0)),
    ],
)
def test_published_forms(form, paper):
    z, m = features(2, 4, 5, 3, dtype=torch.float64), features(2, 4, 5, 6, dtype=torch.float64)
    truth = torch.stack([paper(z[b], m[b]) for b in range(2)]).mean()
    loss = lgf.TokenRelationLoss(form, backend="reference")(z, m)
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)


def gram_loss(student, teacher, normalise, whole_batch, floor_student, floor_teacher):
    """DINOv3's Gram loss of images (B, N, C): mean over all pairs of an image, or of the batch, of the squared difference."""
    pairs = []
    for tokens, floor in ((student, floor_student), (teacher, floor_teacher)):
        if normalise:
            tokens = tokens / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
        images = [tokens.flatten(0, 1)] if whole_batch else list(tokens)
        grams = torch.stack([torch.einsum("ic,jc->ij", image, image) for image in images])
        pairs.append(torch.maximum(grams, torch.tensor(floor, dtype=grams.dtype)))
    return ((pairs[0] - pairs[1]) ** 2).mean()


@pytest.mark.parametrize("apply_norm", [True, False])
@pytest.mark.parametrize("img_level", [True, False])
@pytest.mark.parametrize("negatives", ["keep", "clamp", "clamp-teacher"])
def test_the_options_of_the_gram_loss(negatives, img_level, apply_norm):
    """DINOv3's, as its public code acts: with remove_only_teacher_neg the student keeps all its similarities."""
    student = features(3, 7, 4, dtype=torch.float64, requires_grad=True)
    teacher = features(3, 7, 6, dtype=torch.float64)
    floors = {"keep": (-torch.inf, -torch.inf), "clamp": (0.0, 0.0), "clamp-teacher": (-torch.inf, 0.0)}[negatives]
    truth = gram_loss(student, teacher, apply_norm, not img_level, *floors)
    loss = lgf.token_relation_loss(
        student[None],
        teacher[None],
        pair_weight=lgf.videorepa_pair_weight(3, "spatial" if img_level else "all").double(),
        distance="l2",
        negatives=negatives,
        similarity="cosine" if apply_norm else "dot",
        backend="reference",
    )
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(value, student)[0] for value in (loss, truth))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def autocorrelation(z, m):
    """SARA: the squared Frobenius norm of the difference of the normalised patches' matrices, mean over images."""
    z, m = (F.normalize(tokens, dim=-1) for tokens in (z, m))
    return torch.linalg.matrix_norm(z @ z.mT - m @ m.mT).square().mean()


def test_autocorrelation_is_a_sum_where_the_form_is_a_mean():
    z, m = features(2, 3, 5, 4, dtype=torch.float64), features(2, 3, 5, 6, dtype=torch.float64)
    loss = lgf.TokenRelationLoss("sara", backend="reference")(z, m)
    torch.testing.assert_close(5**2 * loss, autocorrelation(z, m), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_gradient_is_the_derivative(options):
    z = features(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    m = features(2, 3, 4, 5, dtype=torch.float64)
    c = lgf.moalign_pair_weight(3)
    assert torch.autograd.gradcheck(
        lambda s: lgf.token_relation_loss(s, m, pair_weight=c, backend="reference", **options), z
    )
