"""Other people's kernels: the identities they are used through, and how they are called, on stand-ins that compute the same."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from lgf_bench import correctness
from lgf_bench.families import gram_flow_peers as peers
from lgf_bench.families.gram_flow import LgfKl
from support.bench_cases import SMALL

CASES = [
    SMALL["small-lgf"],
    LgfKl((2, 3, 7, 8, 8), 3, teacher_channels=(5, 3, 8)),
    LgfKl((1, 2, 7, 7, 4), teacher_channels=(9,)),
]


def off(function, case) -> float:
    return max(correctness.errors(correctness.answer(function, case), correctness.truth(case)))


def attention(near, queries, keys, values, temperature):
    """Attention over the tokens of a frame, (pairs, H, W, C), where `near` (H*W, H*W)."""
    logits = (queries.flatten(1, 2) @ keys.flatten(1, 2).mT / temperature).masked_fill(~near, -torch.inf)
    out = (logits.softmax(-1) @ values.flatten(1, 2)).unflatten(1, queries.shape[1:3])
    return out, logits.logsumexp(-1).unflatten(1, queries.shape[1:3])


def coordinates(H, W):
    return (x.flatten() for x in torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_identity_is_exact(case):
    def attend(queries, keys, values, temperature):
        y, x = coordinates(*queries.shape[1:3])
        r = case.window // 2
        near = ((y[:, None] - y).abs() <= r) & ((x[:, None] - x).abs() <= r)
        out, lse = attention(near, queries, keys, values, temperature)
        return out, lse.detach()  # as of a kernel that gives no gradient of it

    assert off(peers.kl_by_attention(attend), case) < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flexattention_gives_the_loss():
    """Its backward needs a GPU; the forward of the uncompiled form does not."""
    for case in CASES:
        with torch.no_grad():
            loss = peers.flex_attention(case, compiled=False)(**case.tensors())
        assert torch.allclose(loss.double(), correctness.truth(case).output, rtol=1e-5)


def natten_stand_in():
    """`na2d` as NATTEN has it: always K x K keys, from windows that move inwards at the edge."""

    def na2d(query, key, value, kernel_size, scale, return_lse):
        assert query.shape == key.shape == value.shape and query.shape[-1] % 8 == 0 and return_lse
        H, W = query.shape[1:3]
        K = kernel_size

        def near(a, b, length):
            start = (a - K // 2).clamp(0, length - K)
            return (b >= start[:, None]) & (b < start[:, None] + K)

        y, x = coordinates(H, W)
        out, lse = attention(near(y, y, H) & near(x, x, W), *(t[..., 0, :] for t in (query, key, value)), 1 / scale)
        return out.unsqueeze(-2), lse.unsqueeze(-1).detach()

    functional = ModuleType("natten.functional")
    functional.na2d = na2d
    return {"natten": ModuleType("natten"), "natten.functional": functional}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_natten(case, monkeypatch):
    for name, module in natten_stand_in().items():
        monkeypatch.setitem(sys.modules, name, module)
    assert off(peers.natten(case), case) < 1e-5


@pytest.mark.parametrize("name", ["small-lgf", "small-cached", "small-window", "small-logits"])
def test_spatial_correlation_sampler(name, monkeypatch):
    def spatial_correlation_sample(one, other, kernel_size, patch_size, stride):
        """(B, patch rows, patch columns, H, W), 0 outside the frame."""
        assert kernel_size == stride == 1 and one.is_contiguous() and other.is_contiguous()
        B, C, H, W = one.shape
        windows = F.unfold(other, patch_size, padding=patch_size // 2).view(B, C, patch_size, patch_size, H, W)
        return (one[:, :, None, None] * windows).sum(1)

    module = ModuleType("spatial_correlation_sampler")
    module.spatial_correlation_sample = spatial_correlation_sample
    monkeypatch.setitem(sys.modules, "spatial_correlation_sampler", module)
    case = SMALL[name]
    assert off(peers.PEERS["correlation"].make(case), case) < 1e-5


@pytest.mark.parametrize("name", ["small-lgf", "small-cached", "small-window"])
def test_liger(name, monkeypatch):
    class LigerKLDivLossFunction:
        @staticmethod
        def apply(log_q, p, reduction, log_target, eps):
            assert reduction == "batchmean" and not log_target and log_q.ndim == 2
            return (p * (p.clamp(min=eps).log() - log_q)).sum() / len(p)

    module = ModuleType("liger_kernel.ops.kl_div")
    module.LigerKLDivLossFunction = LigerKLDivLossFunction
    for parent in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.kl_div", module)
    case = SMALL[name]
    assert off(peers.liger(case), case) < 1e-5


def test_who_is_not_here_says_why_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)

    def reason(name, case):
        return peers.PEERS[name].unsupported_reason(case)

    assert "pip install spatial-correlation-sampler" in reason("correlation", SMALL["small-lgf"])
    gpu = LgfKl((1, 2, 3, 4, 5), device="cuda")
    assert reason("natten", gpu) == "not installed: pip install natten"
    assert reason("liger", gpu) == "not installed: pip install liger-kernel"
    assert "CPU" in reason("flexattention", SMALL["small-lgf"])
