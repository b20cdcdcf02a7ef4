"""Bad arguments of point correspondence."""

import torch
from support.messages import check, refused
from support.numerics import features

import lgf_kernels as lgf

S = features(2, 3, 4, 5, 6)
Q = torch.tensor([[0, 1.0, 2.0], [2, 3.0, 4.0]]).expand(2, 2, 3)
P = torch.zeros(2, 2, 3, 2)

points, found = lgf.point_correspondence_loss, lgf.point_correspondence


def query(*numbers):
    """Return two good queries and a third one."""
    return torch.cat([Q, torch.tensor(numbers, dtype=Q.dtype).expand(2, 1, 3)], 1)


BAD = {
    "rank": (lambda: points(S[0], Q, P), ValueError, ["`features`", "(B, T, H, W, C)", "(3, 4, 5, 6)"]),
    "one frame": (lambda: found(S[:, :1], Q), ValueError, ["`features`", "at least 2 frames", "got 1"]),
    "integers": (lambda: points(S.int(), Q, P), TypeError, ["`features`", "float32", "torch.int32"]),
    "queries' shape": (
        lambda: points(S, Q[..., 1:], P), ValueError, ["`queries`", "(B, N, 3)", "(2, any, 3)", "(2, 2, 2)", "stack"],
    ),
    "queries' batch": (lambda: found(S, Q[:1]), ValueError, ["`queries`", "(2, any, 3)", "(1, 2, 3)"]),
    "queries' kind": (lambda: found(S, [[0, 1, 2]]), TypeError, ["`queries`", "torch.Tensor", "list"]),
    "complex queries": (lambda: found(S, Q + 0j), TypeError, ["`queries`", "real", "complex64", "queries.real"]),
    "queries that require grad": (
        lambda: points(S, Q.clone().requires_grad_(), P), ValueError, ["`queries`", "requires grad", "etach"],
    ),
    "queries' device": (lambda: found(S, Q.to("meta")), ValueError, ["`queries`", "cpu", "meta", ".to("]),
    "a fractional frame": (
        lambda: points(S, query(0.5, 0, 0), torch.zeros(2, 3, 3, 2)), ValueError,
        ["point_correspondence_loss:", "`queries`", "whole number from 0 to 2", "queries[0, 2] is (0.5, 0, 0)"],
    ),
    "a frame too many": (lambda: found(S, query(3, 0, 0)), ValueError, ["point_correspondence:", "from 0 to 2", "(3, 0, 0)"]),
    "a row too many": (lambda: found(S, query(0, 3.5, 0)), ValueError, ["y must be from 0 to 3", "(0, 3.5, 0)", "- 0.5"]),
    "a column before the first": (
        lambda: found(S, query(0, 0, -0.1)), ValueError, ["x must be from 0 to 4", "(0, 0, -0.1)", "pixel"],
    ),
    "a place that is no number": (lambda: found(S, query(0, torch.nan, 0)), ValueError, ["`queries`", "(0, nan, 0)"]),
    "targets' shape": (
        lambda: points(S, Q, P[:, :1]), ValueError, ["`targets`", "(B, N, T, 2)", "(2, 2, 3, 2)", "(2, 1, 3, 2)"],
    ),
    "targets that require grad": (
        lambda: points(S, Q, P.clone().requires_grad_()), ValueError, ["`targets`", "requires grad", "etach"],
    ),
    "targets' device": (lambda: points(S, Q, P.to("meta")), ValueError, ["`targets`", "meta"]),
    "weights' shape": (
        lambda: points(S, Q, P, torch.ones(2, 2)), ValueError, ["`weight`", "(B, N, T)", "(2, 2, 3)", "(2, 2)", "expand"],
    ),
    "negative weight": (
        lambda: points(S, Q, P, -torch.ones(2, 2, 3)), ValueError, ["`weight`", ">= 0", "minimum of -1", "clamp"],
    ),
    "weights that require grad": (
        lambda: points(S, Q, P, torch.ones(2, 2, 3, requires_grad=True)), ValueError, ["`weight`", "requires grad"],
    ),
    "temperature": (lambda: found(S, Q, temperature=0), ValueError, ["`temperature`", "> 0", "0.0"]),
    "a temperature that float32 has no reciprocal of": (
        lambda: found(S, Q, temperature=1e-39), ValueError, ["`temperature`", "at least 1.1754943508222875e-38", "1e-39"],
    ),
    "a delta that is 0 in float32": (lambda: points(S, Q, P, delta=1e-50), ValueError, ["`delta`", "at least 1.17", "1e-50"]),
    "delta": (lambda: points(S, Q, P, delta=-1), ValueError, ["`delta`", "> 0", "-1.0"]),
    "distance": (lambda: points(S, Q, P, distance="l2"), ValueError, ["`distance`", "'huber', 'l1'", "'l2'"]),
    "window": (lambda: found(S, Q, window=0), ValueError, ["`window`", "at least 1", "None", "got 0"]),
    "fractional window": (lambda: points(S, Q, P, window=2.0), TypeError, ["`window`", "int", "2.0"]),
    "a window that is a bool": (lambda: points(S, Q, P, window=True), TypeError, ["`window`", "int", "bool True"]),
    "a window of places that is a bool": (lambda: found(S, Q, window=True), TypeError, ["`window`", "bool True"]),
    "a module's window that is a bool": (
        lambda: lgf.PointCorrespondenceLoss(window=True), TypeError, ["`window`", "bool True"],
    ),
    "a delta that is a bool": (lambda: points(S, Q, P, delta=True), TypeError, ["`delta`", "> 0", "bool True"]),
    "large frame": (
        lambda: found(S[:, :, :1, :1].expand(2, 3, 4097, 4096, 6), Q, window=1), ValueError,
        ["`window`", "2^24", "(4097, 4096)", "window=None"],
    ),
    "reduction": (lambda: points(S, Q, P, reduction="max"), ValueError, ["`reduction`", "'max'"]),
    "module": (lambda: lgf.PointCorrespondenceLoss(delta=0), ValueError, ["PointCorrespondenceLoss", "`delta`"]),
    "module's backend": (lambda: lgf.PointCorrespondenceLoss(backend="fast"), ValueError, ["`backend`", "'fast'"]),
    "a module's backend without a name": (
        lambda: lgf.PointCorrespondenceLoss(backend=""), ValueError, ["PointCorrespondenceLoss", "`backend`", "got ''"],
    ),
}  # fmt: skip


@refused(BAD)
def test_message(call, error, words):
    check(call, error, words)


def test_a_window_beyond_every_frame_is_the_whole_frame():
    for backend in ("reference", "portable", None):
        assert torch.equal(found(S, Q, window=2**70, backend=backend), found(S, Q, window=100, backend=backend))


def test_a_constant_that_requires_grad_is_fine_where_no_gradients_are_made():
    with torch.no_grad():
        points(S, Q, P.clone().requires_grad_())
