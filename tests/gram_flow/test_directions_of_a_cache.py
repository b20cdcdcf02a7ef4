"""Losses of both directions from cached logits of one."""

import pytest
import torch
from support.numerics import backends_of, double, features, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf
from lgf_kernels.gram_flow.window import reversed_logits

pytestmark = pytest.mark.parametrize("backend", backends_of("lgf_kl"))


@every_pair(
    direction=("forward", "backward", "both"), cached=("forward", "backward"), reduction=("mean", "sum", "none"),
    similarity=("cosine", "dot"), boundary=("exclude", "zero"), window=(1, 3, 7),
)  # fmt: skip
def test_any_loss_from_any_cache(backend, direction, cached, reduction, similarity, boundary, window):
    student, teachers = features(2, 3, 5, 6, 7), [features(2, 3, 5, 6, C) for C in (4, 9)]
    options = dict(direction=direction, reduction=reduction, similarity=similarity, boundary=boundary, window=window)
    options |= dict(teacher_weights=[0.3, 0.9], temperature=0.4, token_weight=torch.rand(2, 2, 5, 6))
    given = dict(window=window, similarity=similarity, direction=cached, backend="reference")
    cache = [lgf.local_gram_flow(teacher.double(), **given) for teacher in teachers]
    options["upstream"] = torch.rand((2, 2, 5, 6) if reduction == "none" else ())
    ours = value_and_gradient(
        lgf.lgf_kl_loss_from_logits, student, cache, logits_direction=cached, backend=backend, **options
    )
    truth = value_and_gradient(lgf.lgf_kl_loss, student.double(), double(teachers), backend="reference", **options)
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our.double(), true, rtol=2e-5, atol=2e-6)


def test_the_direction_of_a_cache_is_that_of_the_loss_unless_it_is_said(backend):
    student, teacher = features(1, 3, 5, 6, 7), features(1, 3, 5, 6, 4)
    for direction in ("forward", "backward"):
        cache = lgf.local_gram_flow(teacher, direction=direction)
        implied = lgf.lgf_kl_loss_from_logits(student, cache, direction=direction, backend=backend)
        assert torch.equal(
            implied,
            lgf.lgf_kl_loss_from_logits(
                student, cache, direction=direction, logits_direction=direction, backend=backend
            ),
        )
    both = lgf.lgf_kl_loss_from_logits(student, lgf.local_gram_flow(teacher), direction="both", backend=backend)
    torch.testing.assert_close(both, lgf.lgf_kl_loss(student, teacher, direction="both", backend=backend))


def test_the_module_is_the_function(backend):
    student, cache = features(1, 3, 5, 6, 7), lgf.local_gram_flow(features(1, 3, 5, 6, 4)).half()
    options = dict(direction="both", boundary="zero", divergence="l2", reduction="none", teacher_weights=(0.7,))
    criterion = lgf.LocalGramFlowKLLossFromLogits(backend=backend, **options)
    weight = torch.rand(1, 2, 5, 6)
    expected = lgf.lgf_kl_loss_from_logits(student, cache, token_weight=weight, backend=backend, **options)
    assert torch.equal(criterion(student, cache, token_weight=weight), expected)
    assert "logits_direction='forward'" in repr(criterion)


def test_what_a_reversed_cache_holds_outside_the_frame_is_not_looked_at(backend):
    cache = lgf.local_gram_flow(features(1, 3, 5, 6, 8))
    broken = cache.where(lgf.local_window_mask(5, 6), torch.nan)
    assert torch.equal(reversed_logits(broken), reversed_logits(cache))
