"""Token relations on a GPU: every backend against the oracle in float64 on the same device."""

import pytest
import torch
from support.cuda import against_reference, backends, dtypes
from support.numerics import assert_close, backends_of, features, value_and_gradient

import lgf_kernels as lgf

relation_backends = backends("token_relation")


def close_but_for_jumps(gradient, truth, tolerance):
    """The gradient of token relations jumps where a difference passes 0 or the margin. Rounding puts some pairs of millions on
    the other side, and each moves the gradients of its two tokens."""
    errors = torch.linalg.vector_norm(gradient.double() - truth, dim=-1)
    sizes = torch.linalg.vector_norm(truth, dim=-1)
    assert (errors > 2 * tolerance * sizes.mean()).double().mean() <= 0.05
    assert_close(gradient, truth, 1e-2)


@relation_backends
@dtypes
@pytest.mark.parametrize("form", ["moalign", "videorepa-temporal"])
def test_token_relation(backend, form, dtype):
    student, teacher = features(2, 4, 70, 40, dtype=dtype).cuda(), features(2, 4, 70, 24, dtype=dtype).cuda()
    loss = lgf.TokenRelationLoss(form)
    weight = loss.pair_weight(4, "cuda")
    against_reference(
        lambda s, t, **o: lgf.token_relation_loss(s, t, pair_weight=weight, margin=loss.margin, **o),
        student, teacher, backend, close_but_for_jumps,
    )  # fmt: skip


@relation_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 24, 150, 256, 768), (2, 3, 700, 128, 64), (1, 70, 5, 136, 8), (1, 2, 130, 520, 16)], ids=str
)
def test_token_relation_tiles(backend, shape, dtype):
    """Frames larger and smaller than tiles, channels for one to several products side by side."""
    *tokens, C, D = shape
    student, teacher = features(*tokens, C, dtype=dtype).cuda(), features(*tokens, D, dtype=dtype).cuda()
    weight = lgf.moalign_pair_weight(tokens[1], device="cuda")
    upstream = torch.tensor(2.0**16, device="cuda")  # to where float16 has all its digits
    options = dict(pair_weight=weight, upstream=upstream)
    against_reference(lgf.token_relation_loss, student, teacher, backend, close_but_for_jumps, **options)


@pytest.mark.parametrize("backend", [name for name in backends_of("token_relation", "cuda") if name != "portable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_same_features_differ_by_nothing(backend, dtype):
    """What the interpreter and the model of a GPU cannot show: whether compilers fuse one product and not the other."""
    student, weight = features(1, 3, 150, 64, dtype=dtype).cuda(), torch.ones(3, 3, device="cuda")
    value, gradient = value_and_gradient(
        lgf.token_relation_loss, student, student.clone(), pair_weight=weight, backend=backend
    )
    assert value == 0 and not gradient.any()


@relation_backends
def test_token_relation_in_panels(backend, monkeypatch):
    student, teacher = features(1, 4, 600, 64).bfloat16().cuda(), features(1, 4, 600, 40).bfloat16().cuda()
    weight = torch.rand(4, 4, device="cuda")
    whole = value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=weight, backend=backend)
    monkeypatch.setenv("LGF_SCRATCH_MIB", "2")
    cut = value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=weight, backend=backend)
    assert torch.equal(cut[0], whole[0])
    assert_close(cut[1], whole[1].double(), 4e-3)  # added up in another order before it is rounded
