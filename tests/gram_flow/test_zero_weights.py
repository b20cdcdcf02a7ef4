"""Tokens of weight 0 are skipped by Local Gram Flow: what is left is exact, and nothing of what only they see is looked at."""

import mmap
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from support.numerics import against_reference, backends_of, features, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf
from lgf_kernels.core.registry import implementation
from lgf_kernels.gram_flow.options import LgfOptions

every_backend = pytest.mark.parametrize("backend", backends_of("lgf_kl"))

#: More rows than a window reaches, two and a bit tiles of them, and a row and a column that fill no tile.
B, T, H, W = 2, 3, 18, 9


def rows(wanted):
    return wanted(torch.arange(H))[:, None].expand(B, T - 1, H, W)


#: Which tokens keep a weight other than 0.
KEPT = {
    "lower rows": lambda: rows(lambda y: y >= 10),
    "upper rows": lambda: rows(lambda y: y < 3),
    "every third row": lambda: rows(lambda y: y % 3 == 1),
    "rows that share no key": lambda: rows(lambda y: y % 12 == 5),
    "one frame": lambda: (torch.arange(T - 1) == 1)[:, None, None].expand(B, T - 1, H, W),
    "one video": lambda: (torch.arange(B) == 1)[:, None, None, None].expand(B, T - 1, H, W),
    "some tokens": lambda: torch.rand(B, T - 1, H, W) < 0.3,
    "few tokens": lambda: torch.rand(B, T - 1, H, W) < 0.01,
    "one token": lambda: torch.arange(B * (T - 1) * H * W).view(B, T - 1, H, W) == 500,
}
OPTIONS = {"direction": ("forward", "backward", "both"), "divergence": ("kl", "l2"), "reduction": ("mean", "none")}


def weights(kept: str) -> torch.Tensor:
    return torch.rand(B, T - 1, H, W).add(0.1).where(KEPT[kept](), 0)


def loss_of(*channels, cached: bool, **options):
    """Return a loss and its teachers, of features or of their logits in direction "forward"."""
    teachers = [features(B, T, H, W, C) for C in channels]
    if not cached:
        return lgf.lgf_kl_loss, teachers
    loss = partial(lgf.lgf_kl_loss_from_logits, logits_direction="forward")
    return loss, [lgf.local_gram_flow(teacher, backend="reference", **options) for teacher in teachers]


@every_backend
@every_pair(kept=tuple(KEPT), cached=(False, True), options=OPTIONS)
def test_against_the_reference(backend, kept, cached, options):
    student = features(B, T, H, W, 7, dtype=torch.float64)
    of_window = dict(window=5, similarity="cosine" if options["divergence"] == "kl" else "dot")
    loss, teachers = loss_of(4, 9, cached=cached, **of_window)
    options = options | of_window | dict(temperature=0.4, teacher_weights=[0.3, 0.9], token_weight=weights(kept))
    shape = (B, T - 1, H, W) if options["reduction"] == "none" else ()
    options["upstream"] = torch.randn(shape, dtype=torch.float64)
    against_reference(loss, student, teachers, backend=backend, value=1e-12, gradient=1e-12, **options)


@every_backend
@pytest.mark.parametrize("kept", ["lower rows", "some tokens"])
def test_no_bit_differs_from_a_loss_of_all_tokens_that_is_masked_later(backend, kept):
    """The zeros come with the gradient then, and nothing is skipped."""
    student, (loss, teachers) = features(B, T, H, W, 20), loss_of(7, cached=False)
    mask = KEPT[kept]().float()
    options = dict(reduction="none", direction="both", backend=backend)
    values, gradient = value_and_gradient(loss, student, teachers, token_weight=mask, **options)
    whole, masked_gradient = value_and_gradient(loss, student, teachers, upstream=mask, **options)
    assert torch.equal(values, whole * mask)
    assert torch.equal(gradient, masked_gradient)


@every_backend
@pytest.mark.parametrize("shape", [(1, 2, 1, 1, 1), (1, 2, 1, 40, 3), (2, 3, 33, 1, 17), (1, 3, 2, 3, 70)], ids=str)
@pytest.mark.parametrize("window", [1, 3, 15])
def test_ragged_shapes(backend, window, shape):
    student, teacher = features(*shape), features(*shape[:4], 6)
    weight = torch.rand(shape[0], shape[1] - 1, *shape[2:4]).sub(0.5).clamp(min=0)
    weight[:, :, -1:, -1:] = 1
    options = dict(window=window, direction="both", token_weight=weight)
    against_reference(lgf.lgf_kl_loss, student, teacher, backend=backend, absolute=1e-7, **options)


@every_backend
@pytest.mark.parametrize("cached", [False, True])
def test_without_any_weight(backend, cached):
    student, (loss, teachers) = features(B, T, H, W, 7), loss_of(4, cached=cached)
    zeros = torch.zeros(B, T - 1, H, W)
    for reduction in ("sum", "none"):
        results = value_and_gradient(loss, student, teachers, token_weight=zeros, reduction=reduction, backend=backend)
        assert all((result == 0).all() for result in results)
    value, gradient = value_and_gradient(loss, student, teachers, token_weight=zeros, backend=backend)
    assert value.isnan() and gradient.isnan().all()  # 0 / 0, as the reference


#: First rows that only skipped tokens look at, of frames whose first 16 rows have weight 0, with a window of 7. Triton adds
#: products of 0 to the gradients of a tile of 8 rows that counted tokens look at, from 3 rows above it on.
UNSEEN_ROWS = {"native": 13, "triton": 5}
skipping = pytest.mark.parametrize("backend", [name for name in UNSEEN_ROWS if name in backends_of("lgf_kl")])


def assert_only_zeros_where_broken(loss, student, teachers, broken, places, **options):
    """Compare with what the loss is without the broken numbers of the student at `places`."""
    results = [value_and_gradient(loss, *given, reduction="sum", **options) for given in ((student, teachers), broken)]
    assert all(map(torch.equal, *results))
    assert results[0][0] > 0 and (results[0][1][places] == 0).all()


@skipping
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("cached", [False, True])
def test_rows_of_weight_zero_are_not_computed(backend, cached, direction):
    """A product with NaN, were it made, would not vanish by a weight of 0."""
    student, teachers = features(1, 3, 24, 11, 20), [features(1, 3, 24, 11, 9) for _ in range(2)]
    options = dict(direction=direction, backend=backend, token_weight=torch.rand(1, 2, 24, 11))
    options["token_weight"][:, :, :16] = 0
    loss, unseen = lgf.lgf_kl_loss, UNSEEN_ROWS[backend]
    if cached:
        loss, unseen_of_teachers = lgf.lgf_kl_loss_from_logits, 16 - 3 * (direction == "both")
        one_way = "backward" if direction == "backward" else "forward"
        teachers = [lgf.local_gram_flow(t, direction=one_way, backend="reference") for t in teachers]
    else:
        unseen_of_teachers = unseen
    broken = student.clone(), [teacher.clone() for teacher in teachers]
    broken[0][:, :, :unseen] = torch.nan
    for teacher in broken[1]:
        teacher[:, :, :unseen_of_teachers] = torch.nan
    places = (slice(None), slice(None), slice(unseen))
    assert_only_zeros_where_broken(loss, student, teachers, broken, places, **options)


@skipping
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("first", [True, False])
def test_a_frame_of_a_pair_of_weight_zero_is_not_looked_at(backend, first, direction):
    """The other frame of the pair has gradients by its other neighbour."""
    student, teacher = features(1, 4, 10, 11, 20), features(1, 4, 10, 11, 9)
    pair, frame = (0, 0) if first else (2, 3)
    weight = torch.rand(1, 3, 10, 11)
    weight[:, pair] = 0
    broken = student.clone(), teacher.clone()
    for tensor in broken:
        tensor[:, frame] = torch.nan
    options = dict(direction=direction, backend=backend, token_weight=weight)
    assert_only_zeros_where_broken(lgf.lgf_kl_loss, student, teacher, broken, (slice(None), frame), **options)


@skipping
def test_what_is_kept_of_skipped_tokens_is_defined(backend):
    """Memory that is not initialised holds NaN here."""
    student, teacher = features(1, 3, 9, 11, 20), features(1, 3, 9, 11, 9)
    loss = implementation("lgf_kl", backend, "cpu")
    weight, options = torch.zeros(1, 2, 9, 11), LgfOptions()
    _, residual = loss.forward(student, [teacher], [1.0], weight, options, False, True)
    if backend == "triton":
        from lgf_kernels.gram_flow.triton_loss import Residual

        residual = Residual(residual, student, options).slots.unflatten(-1, (7, -1))
    assert (residual == 0).all()


READS = """
import ctypes, itertools, mmap, torch, lgf_kernels as lgf

def guarded(*shape):
    memory = mmap.mmap(-1, 4 * torch.Size(shape).numel())
    tensor = torch.frombuffer(memory, dtype=torch.float32).view(shape).copy_(torch.randn(shape))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(len(memory) // 2), 0) == 0
    return tensor

student, teachers = guarded(2, 3, 32, 16, 16), [guarded(2, 3, 32, 16, 32) for _ in range(2)]
cache, weight = guarded(2, 2, 32, 16, 49), torch.ones(2, 2, 32, 16)
weight[0] = 0
for direction, (loss, given) in itertools.product(
    ("forward", "backward"), ((lgf.lgf_kl_loss, teachers), (lgf.lgf_kl_loss_from_logits, cache))
):
    leaf = student.detach().requires_grad_()
    loss(leaf, given, direction=direction, token_weight=weight, backend="native").backward()
    assert (leaf.grad[0] == 0).all() and leaf.grad[1].norm() > 0
"""


@pytest.mark.skipif("native" not in backends_of("lgf_kl") or os.name != "posix" or mmap.PAGESIZE > 4096, reason="pages")
def test_native_reads_nothing_of_a_video_of_weight_zero():
    """Its features and cached logits lie in memory of which every access ends the process."""
    done = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@skipping
def test_nan_that_a_token_with_a_weight_looks_at_stays(backend):
    student, teacher = features(1, 2, 24, 11, 20), features(1, 2, 24, 11, 9)
    weight = torch.zeros(1, 1, 24, 11)
    weight[:, :, 20:] = 1
    student[0, 1, 17] = torch.nan
    value, gradient = value_and_gradient(lgf.lgf_kl_loss, student, teacher, token_weight=weight, backend=backend)
    assert value.isnan() and gradient[0, 0, 20].isnan().all()


@skipping
def test_a_weight_of_nan_is_no_weight_of_zero(backend):
    student, teacher = features(1, 2, 9, 11, 20), features(1, 2, 9, 11, 9)
    weight = torch.zeros(1, 1, 9, 11)
    weight[0, 0, 4, 5] = torch.nan
    assert lgf.lgf_kl_loss(student, teacher, token_weight=weight, reduction="sum", backend=backend).isnan()
