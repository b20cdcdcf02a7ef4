"""The floor against numbers counted by hand and by brute force."""

import pytest
from lgf_bench.families.base import Work
from lgf_bench.families.gram_flow import LgfKl, LocalGramFlow
from lgf_bench.families.token_relation import TokenRelation

import lgf_kernels as lgf

SHAPE = (1, 2, 2, 3, 5)


def test_local_gram_flow_loss_by_hand():
    """One pair of 2 x 3 frames, window 3: rows reach 4 of 6 positions, columns 7 of 9; 28 of 54 are inside."""
    found = LgfKl(SHAPE, window=3, teacher_channels=(4, 6)).work()
    assert found["forward"] == Work(2 * 28 * (5 + 4 + 6), 2 * 6 * (5 + 4 + 6) * 4)
    assert found["backward"] == Work(2 * 2 * 28 * 5, 2 * (2 * 6 * 5) * 4)
    assert found["both"] == Work(2 * 28 * 15 + 4 * 28 * 5, 2 * 6 * (5 + 4 + 6) * 4 + 2 * 6 * 5 * 4)


def test_cached_logits_are_read_in_half_precision_and_cost_no_products():
    found = LgfKl(SHAPE, window=3, teacher_channels=(4, 6), cached=True).work()
    assert found["forward"] == Work(2 * 28 * 5, 2 * 6 * 5 * 4 + 2 * (6 * 9) * 2)


def test_logits_are_written_and_their_gradient_is_read():
    found = LocalGramFlow(SHAPE, window=3, dtype="bfloat16").work()
    features, logits = 2 * 6 * 5 * 2, 6 * 9 * 4
    assert found["forward"] == Work(2 * 28 * 5, features + logits)
    assert found["backward"] == Work(4 * 28 * 5, 2 * features + logits)
    assert found["both"] == Work(6 * 28 * 5, 2 * features + 2 * logits)


@pytest.mark.parametrize("window", [1, 3, 7, 15])
def test_positions_inside_are_those_of_the_mask(window):
    inside = int(lgf.local_window_mask(5, 9, window).sum())
    assert LocalGramFlow((2, 4, 5, 9, 1), window=window).work()["forward"].flop == 2 * (2 * 3 * inside)


def test_token_relations_by_hand():
    """2 frames of 3 tokens, all pairs weighted: 21 of the 36 products of a symmetric Gram; 36 coefficients."""
    found = TokenRelation((4, 2, 3, 5), 7).work()
    weight = 2 * 2 * 4
    assert found["forward"] == Work(4 * 2 * 21 * (5 + 7), 4 * 6 * (5 + 7) * 4 + weight)
    assert found["backward"] == Work(4 * 2 * 36 * 5, 2 * (4 * 6 * 5) * 4)


def test_pairs_of_weight_0_cost_nothing():
    # 12 tokens a frame and 2 channels: the sums of channels are 2 x 3 / 2, 2 x 1 and 1, and each token meets 2 x 3 of them.
    gram = TokenRelation((1, 2, 12, 2), 1, "gram")
    assert [it.flop for it in map(gram.work().get, ("forward", "backward"))] == [24 * 2 * 6, 24 * 2 * 6]
    clamped, pairs = TokenRelation((1, 2, 12, 2), 1, "gram-clamped"), 2 * 12 * 13 // 2
    assert clamped.work()["forward"].flop == 2 * pairs * 3
    spatial, temporal = (TokenRelation((1, 2, 3, 5), 7, f"videorepa-{kind}").work() for kind in ("spatial", "temporal"))
    assert spatial["forward"].flop == 2 * (2 * 6) * (5 + 7) and spatial["backward"].flop == 2 * (2 * 9) * 5
    assert temporal["forward"].flop == 2 * 9 * (5 + 7)


def test_the_floor_is_the_slower_of_both():
    assert Work(100, 10).seconds(flops=10.0, bandwidth=10.0) == 10.0
    assert Work(100, 1000).seconds(flops=10.0, bandwidth=10.0) == 100.0


def test_the_floors_known_for_a_large_gpu():
    """At 4.3 TB/s, in bfloat16 and with two teachers: 72 us forward and 96 us in one pass on SAM2's grid."""
    found = LgfKl((1, 49, 64, 64, 256), dtype="bfloat16").work()
    assert 1e6 * found["forward"].seconds(790e12, 4.3e12) == pytest.approx(72, abs=1)
    assert 1e6 * found["both"].seconds(790e12, 4.3e12) == pytest.approx(96, abs=1)
