"""The oracle for point correspondence against loops over Python floats, planted motion, and gradcheck."""

import math

import pytest
import torch
from support.numerics import features
from support.points import points

import lgf_kernels as lgf


def unit(v):
    norm = max(math.sqrt(sum(x * x for x in v)), 1e-6)
    return [x / norm for x in v]


def loop_place(frame, f, temperature, window):
    """The place of a normalised feature f in a frame[y][x][channel]."""
    z = {
        (y, x): sum(a * b for a, b in zip(f, unit(token), strict=True)) / temperature
        for y, row in enumerate(frame)
        for x, token in enumerate(row)
    }
    if window is not None:
        best = max(z, key=z.get)
        z = {r: value for r, value in z.items() if max(abs(r[0] - best[0]), abs(r[1] - best[1])) <= window}
    largest = max(z.values())
    total = sum(math.exp(value - largest) for value in z.values())
    return [sum(math.exp(value - largest) * r[axis] for r, value in z.items()) / total for axis in (0, 1)]


def loop_feature(frame, y, x):
    """Bilinear between the four tokens around."""
    top, left = math.floor(y), math.floor(x)
    total = [0.0] * len(frame[0][0])
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        share = (1 - abs(y - row)) * (1 - abs(x - column))
        if share > 0:
            total = [a + share * b for a, b in zip(total, frame[row][column], strict=True)]
    return total


def loop_losses(video, queries, targets, weight, temperature, distance, delta, window):
    """w l [n][t] of one video."""
    losses = []
    for (t_q, y, x), track, visible in zip(queries, targets, weight, strict=True):
        f, row = unit(loop_feature(video[int(t_q)], y, x)), []
        for t, frame in enumerate(video):
            place = loop_place(frame, f, temperature, window)
            e = math.dist(place, track[t])
            if distance == "huber":
                e = e * e / 2 if e <= delta else delta * (e - delta / 2)
            row.append(0.0 if t == t_q else visible[t] * e)
        losses.append(row)
    return losses


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("distance", ["huber", "l1"])
def test_loss_equals_the_loops(distance, window):
    f = features(2, 3, 4, 5, 6, dtype=torch.float64)
    f[0, 1, 2] = 0
    f[1, :, 1] *= 5e-7  # a norm around the epsilon of 1e-6
    queries, targets, weight = points(2, 5, 3, 4, 5)
    queries[0, 0, 1:] = torch.tensor([3.0, 4.0])  # the last row and column
    queries[0, 1, 1:] = torch.tensor([2.0, 1.5])
    options = dict(temperature=0.3, distance=distance, delta=0.8, window=window)
    lists = [[x[b].tolist() for x in (f, queries, targets, weight)] for b in range(2)]
    truth = torch.tensor([loop_losses(*each, **options) for each in lists], dtype=torch.float64)
    total = sum(weight[b, n, t] for b in range(2) for n in range(5) for t in range(3) if t != queries[b, n, 0])
    for reduction, expected in (("none", truth), ("sum", truth.sum()), ("mean", truth.sum() / total)):
        value = lgf.point_correspondence_loss(
            f, queries, targets, weight, reduction=reduction, backend="reference", **options
        )
        torch.testing.assert_close(value, expected)


def test_places_are_those_that_the_loss_is_about():
    f, (queries, targets, _) = features(1, 3, 4, 5, 6, dtype=torch.float64), points(1, 7, 3, 4, 5)
    places = lgf.point_correspondence(f, queries, backend="reference")
    e = (places - targets).norm(dim=-1)
    own = queries[..., :1] == torch.arange(3)
    losses = lgf.point_correspondence_loss(f, queries, targets, distance="l1", reduction="none", backend="reference")
    torch.testing.assert_close(losses, e.masked_fill(own, 0))
    mean = lgf.point_correspondence_loss(f, queries, targets, distance="l1", backend="reference")
    torch.testing.assert_close(mean, e[~own].mean())


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("distance", ["huber", "l1"])
def test_gradcheck(distance, window):
    f = features(1, 3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    queries, targets, weight = points(1, 4, 3, 3, 4)

    def loss(f):
        options = dict(distance=distance, delta=0.7, temperature=0.3, window=window)
        return lgf.point_correspondence_loss(f, queries, targets, weight, backend="reference", **options)

    assert torch.autograd.gradcheck(loss, f)


def planted(T=4, H=12, W=14, C=256, step=(1, -2)):
    """A random field that moves by whole tokens, and the tracks of all that stays inside."""
    field = torch.randn(1, H, W, C, dtype=torch.float64)
    video = torch.stack([field.roll((t * step[0], t * step[1]), (1, 2)) for t in range(T)], 1)
    y, x = torch.meshgrid(torch.arange(2, 7), torch.arange(7, 12), indexing="ij")
    start = torch.stack([y, x], -1).reshape(1, -1, 1, 2)
    targets = start + torch.arange(T)[:, None] * torch.tensor(step)
    queries = torch.cat([torch.zeros(1, 25, 1, dtype=torch.int64), start[:, :, 0]], -1)
    return video, queries, targets


@pytest.mark.parametrize("window", [None, 5])
def test_planted_motion_is_found(window):
    video, queries, targets = planted()
    places = lgf.point_correspondence(video, queries, window=window, backend="reference")
    assert (places - targets).abs().max() < 1e-3
    loss = lgf.point_correspondence_loss(video, queries, targets, window=window, backend="reference")
    shuffled = lgf.point_correspondence_loss(video, queries, targets.roll(7, 1), window=window, backend="reference")
    assert loss < 1e-5 and shuffled > 1


def test_a_window_of_the_whole_frame_is_none():
    f, (queries, targets, weight) = features(1, 3, 4, 5, 6, dtype=torch.float64), points(1, 7, 3, 4, 5)
    whole, wide = (
        lgf.point_correspondence_loss(f, queries, targets, weight, window=w, backend="reference") for w in (None, 4)
    )
    torch.testing.assert_close(whole, wide)


def test_the_first_of_equal_similarities_is_the_middle_of_the_window():
    f = torch.zeros(1, 2, 1, 9, 2)
    f[..., 0] = 1
    f[0, 1, 0, 4] = torch.tensor([0.0, 1.0])  # the others are alike
    place = lgf.point_correspondence(f, torch.tensor([[[0, 0, 0]]]), window=1, temperature=0.01, backend="reference")
    torch.testing.assert_close(place[0, 0, 1], torch.tensor([0.0, 0.5]))
