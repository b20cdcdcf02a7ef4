"""The CPU kernels of point correspondence by themselves: instruction sets, threads, blocks, types at the edges, bad calls."""

import pytest
import torch
from support.numerics import assert_close, features, relative_error, value_and_gradient
from support.pairs import every_pair
from support.points import points

import lgf_kernels as lgf
from lgf_kernels.core import native

cpu, reason = native.load("cpu")
pytestmark = pytest.mark.skipif(cpu is None, reason=f"no native module: {reason}")
loss = lgf.point_correspondence_loss


def against_reference(f, queries, targets, weight, **options):
    ours = value_and_gradient(loss, f, queries, targets, weight, backend="native", **options)
    truth = value_and_gradient(loss, f.double(), queries, targets, weight, backend="reference", **options)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 1e-3}[f.dtype]
    assert_close(ours[0], truth[0], min(tolerance, 1e-5), absolute=1e-7)
    assert_close(ours[1], truth[1], tolerance, absolute=1e-7)


@every_pair(
    dtype=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    shape=((1, 1, 2, 1, 1, 1), (2, 7, 3, 1, 7, 3), (1, 13, 3, 9, 1, 17), (1, 97, 2, 6, 37, 70)),
    window=(None, 1, 4),
)
def test_every_instruction_set(isa, window, shape, dtype):
    B, N, T, H, W, C = shape
    queries, targets, weight = points(B, N, T, H, W)
    against_reference(features(B, T, H, W, C, dtype=dtype), queries, targets, weight, window=window, temperature=0.3)


@pytest.mark.parametrize("count", [95, 96, 97, 193])
@pytest.mark.parametrize("tokens", [(12, 16), (13, 15), (1, 385)], ids=str)
def test_blocks_of_queries_and_tokens(tokens, count):
    """Around 96 queries and 192 tokens; the largest logit in any block."""
    queries, targets, weight = points(1, count, 2, *tokens)
    against_reference(features(1, 2, *tokens, 20), queries, targets, weight, temperature=0.05)


def test_a_query_that_is_not_searched_costs_nothing_and_changes_nothing():
    """Only queries whose place counts in a frame take part in its gradient: some, one or none of a block."""
    f, (queries, targets, weight) = features(1, 4, 9, 11, 24), points(1, 120, 4, 9, 11)
    queries[..., 0] = 0
    weight[:, :, 1] = 0
    weight[:, 1:, 2] = 0
    against_reference(f, queries, targets, weight, reduction="sum")
    _, gradient = value_and_gradient(loss, f, queries, targets, weight, backend="native")
    assert (gradient[0, 1] == 0).all() and gradient[0, 3].abs().min() > 0


def test_a_norm_whose_square_overflows(isa):
    f, arguments = features(1, 3, 4, 19, 70), points(1, 20, 3, 4, 19)
    huge = f.clone()
    huge[0, 1] *= 1e25
    truth = value_and_gradient(loss, huge.double(), *arguments, backend="reference")
    value, _ = value_and_gradient(loss, huge, *arguments, backend="native")
    # torch samples the queries, and knows no such norms.
    assert value.isnan() or relative_error(value, truth[0]) < 1e-5


def test_logits_far_apart_in_order_and_against_it(isa):
    """A maximum that rises from block to block, and one that falls, by more than float32 has exponents for."""
    f = torch.zeros(1, 3, 1, 600, 2)
    angle = torch.linspace(0, 3, 600)
    f[0, 1, 0] = torch.stack([angle.cos(), angle.sin()], -1)
    f[0, 2] = f[0, 1].flip(1)
    f[0, 0, 0] = f[0, 1, 0]
    queries, targets = torch.tensor([[[0, 0.0, 0.0], [0, 0.0, 599.0]]]), torch.full((1, 2, 3, 2), 300.0)
    against_reference(f, queries, targets, torch.ones(1, 2, 3), temperature=0.01)


def test_threads_change_no_bit(isa):
    f, arguments = features(2, 9, 5, 13, 40), points(2, 110, 9, 5, 13)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5, 64):
            torch.set_num_threads(count)
            results.append(value_and_gradient(loss, f, *arguments, backend="native"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_bad_calls_raise():
    f, out = features(1, 2, 3, 4, 5), torch.empty(100)
    arguments = (native.described(f), (1, 2, 3, 4), out.data_ptr(), 1, out.data_ptr(), out.data_ptr())
    with pytest.raises(ValueError, match="window"):
        cpu.point_correspondence(*arguments, window=-1, num_threads=1)
    with pytest.raises(ValueError, match="shape"):
        cpu.point_correspondence(arguments[0], (1, 0, 3, 4), *arguments[2:], window=0, num_threads=1)
    with pytest.raises(ValueError, match="count"):
        cpu.point_correspondence(*arguments[:3], -1, *arguments[4:], window=0, num_threads=1)
    with pytest.raises(ValueError, match="dtype"):
        described = (arguments[0][0], "int8", *arguments[0][2:])
        cpu.point_correspondence(described, *arguments[1:], window=0, num_threads=1)
