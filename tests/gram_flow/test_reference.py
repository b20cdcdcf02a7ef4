"""The oracle of Local Gram Flow against loops over Python floats, and gradcheck."""

import itertools
import math

import pytest
import torch
from support.numerics import features

import lgf_kernels as lgf

B, T, H, W, C, K = 2, 3, 3, 4, 3, 3
R = K // 2
OFFSETS = [(dy, dx) for dy in range(-R, R + 1) for dx in range(-R, R + 1)]


def unit(vector, similarity):
    if similarity == "dot":
        return vector
    norm = max(math.sqrt(sum(v * v for v in vector)), 1e-6)
    return [v / norm for v in vector]


def inside(y, x):
    return 0 <= y < H and 0 <= x < W


def loop_logits(f, similarity, direction):
    """{(b, t, y, x): [z for each offset]} of a nested list f[b][t][y][x][c]; None outside the frame."""
    z = {}
    for b, t, y, x in itertools.product(range(B), range(T - 1), range(H), range(W)):
        query_frame, key_frame = (t, t + 1) if direction == "forward" else (t + 1, t)
        query = unit(f[b][query_frame][y][x], similarity)
        z[b, t, y, x] = [
            sum(q * k for q, k in zip(query, unit(f[b][key_frame][y + dy][x + dx], similarity), strict=True))
            if inside(y + dy, x + dx)
            else None
            for dy, dx in OFFSETS
        ]
    return z


def loop_divergence(zS, zT, tau, boundary, divergence):
    """KL or l2 of one token from its logits, None where the window leaves the frame."""
    if boundary == "exclude":
        pairs = [(s, t) for s, t in zip(zS, zT, strict=True) if s is not None]
    else:
        pairs = [(s or 0.0, t or 0.0) for s, t in zip(zS, zT, strict=True)]
    if divergence == "l2":
        return sum((s - t) ** 2 for s, t in pairs) / len(pairs)
    total_p = sum(math.exp(t / tau) for _, t in pairs)
    total_q = sum(math.exp(s / tau) for s, _ in pairs)
    kl = 0.0
    for s, t in pairs:
        p, q = math.exp(t / tau) / total_p, math.exp(s / tau) / total_q
        kl += p * (math.log(p) - math.log(q))
    return kl


def loop_loss(student, teachers, weights, a, tau, similarity, boundary, divergence, direction, reduction):
    ways = ("forward", "backward") if direction == "both" else (direction,)
    values = dict.fromkeys(itertools.product(range(B), range(T - 1), range(H), range(W)), 0.0)
    for way in ways:
        zS = loop_logits(student, similarity, way)
        zM = [loop_logits(teacher, similarity, way) for teacher in teachers]
        for token in values:
            zT = [
                None if z[0] is None else sum(w * v for w, v in zip(weights, z, strict=True))
                for z in zip(*[m[token] for m in zM], strict=True)
            ]
            values[token] += loop_divergence(zS[token], zT, tau, boundary, divergence) / len(ways)
    weighted = {(b, t, y, x): a[b][t][y][x] * v for (b, t, y, x), v in values.items()}
    if reduction == "none":
        return torch.tensor(list(weighted.values()), dtype=torch.float64).view(B, T - 1, H, W)
    total = sum(weighted.values())
    if reduction == "mean":
        total /= sum(a[b][t][y][x] for b, t, y, x in weighted)
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_logits_equal_the_loops(similarity, direction):
    f = features(B, T, H, W, C, dtype=torch.float64)
    f[0, 1, 1, 1] = 0
    f[1, :, 1, 2] *= 5e-7  # a norm around the epsilon of 1e-6
    truth = loop_logits(f.tolist(), similarity, direction)
    truth = torch.tensor([[0.0 if v is None else v for v in z] for z in truth.values()], dtype=torch.float64)
    z = lgf.local_gram_flow(f, window=K, similarity=similarity, direction=direction, backend="reference")
    torch.testing.assert_close(z, truth.view(B, T - 1, H, W, K * K))


def test_mask_says_where_the_loops_stay_inside():
    truth = [[[inside(y + dy, x + dx) for dy, dx in OFFSETS] for x in range(W)] for y in range(H)]
    assert lgf.local_window_mask(H, W, K).tolist() == truth


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("divergence", ["kl", "l2"])
@pytest.mark.parametrize("boundary", ["exclude", "zero"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_loss_equals_the_loops(similarity, boundary, divergence, direction, reduction):
    student = features(B, T, H, W, C, dtype=torch.float64)
    teachers = [features(B, T, H, W, C + m, dtype=torch.float64) for m in range(2)]
    weights, tau = [0.3, 0.9], 0.7
    a = torch.rand(B, T - 1, H, W, dtype=torch.float64)
    options = dict(similarity=similarity, boundary=boundary, divergence=divergence, direction=direction)
    truth = loop_loss(
        student.tolist(), [t.tolist() for t in teachers], weights, a.tolist(), tau, reduction=reduction, **options
    )
    loss = lgf.lgf_kl_loss(
        student, teachers, teacher_weights=weights, token_weight=a, window=K, temperature=tau,
        reduction=reduction, backend="reference", **options,
    )  # fmt: skip
    torch.testing.assert_close(loss, truth)
    if direction != "both":
        cache = [lgf.local_gram_flow(t, window=K, similarity=similarity, direction=direction) for t in teachers]
        cache = [z.where(lgf.local_window_mask(H, W, K), torch.nan) for z in cache]  # outside is not looked at
        cached = lgf.lgf_kl_loss_from_logits(
            student, cache, teacher_weights=weights, token_weight=a, window=K, temperature=tau,
            reduction=reduction, backend="reference", **options,
        )  # fmt: skip
        torch.testing.assert_close(cached, truth)


def test_defaults_are_uniform_weights_and_the_plain_mean():
    student, *teachers = (features(B, T, H, W, C, dtype=torch.float64) for _ in range(3))
    ones = torch.ones(B, T - 1, H, W)
    truth = loop_loss(
        student.tolist(), [t.tolist() for t in teachers], [0.5, 0.5], ones.tolist(), 0.1, "cosine", "exclude", "kl",
        "forward", "mean",
    )  # fmt: skip
    torch.testing.assert_close(lgf.lgf_kl_loss(student, teachers, window=K, backend="reference"), truth)


def test_backward_is_forward_of_the_reversed_video_read_in_reverse():
    f = features(B, T, H, W, C, dtype=torch.float64)
    backward = lgf.local_gram_flow(f, window=K, direction="backward", backend="reference")
    reversed_video = lgf.local_gram_flow(f.flip(1), window=K, backend="reference").flip(1)
    assert torch.equal(backward, reversed_video)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("divergence", ["kl", "l2"])
@pytest.mark.parametrize("boundary", ["exclude", "zero"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradient_is_the_derivative(similarity, boundary, divergence, direction):
    student = features(1, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    teacher = features(1, 3, 2, 3, 4, dtype=torch.float64)

    def loss(s):
        return lgf.lgf_kl_loss(
            s, teacher, window=K, temperature=0.5, similarity=similarity, boundary=boundary, divergence=divergence,
            direction=direction, backend="reference",
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, student)
