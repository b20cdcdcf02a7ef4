"""The share of a training step: a small step trains, and the text follows from the numbers."""

import sys

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from dataclasses import replace

from lgf_bench import memory, step, table
from lgf_bench.providers import provider

SMALL = replace(step.CONFIGS["tiny"], heads=1, layers=2, grid=(3, 4, 6), frames=3, text=(2, 8), rank=4)


def test_a_step_trains_the_adapters_and_the_projector_only_with_the_loss():
    torch.manual_seed(0)
    training = step.Training(SMALL, "cpu")
    loss = provider("portable", SMALL.loss_case("cpu"))
    with torch.no_grad():
        plain, aligned = training.loss(None), training.loss(loss)
    assert aligned > plain
    training.step(None)
    assert all(parameter.grad is None for parameter in training.model.projector.parameters())
    training.step(loss)
    assert all(parameter.grad is not None for parameter in training.model.projector.parameters())
    trained = [name for name, p in training.model.transformer.named_parameters() if p.grad is not None]
    assert trained and all("lora" in name for name in trained)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as it is", "compiled"])
def test_measured(monkeypatch, compiled):
    if not compiled:  # the 49 shifts of a window compile for minutes
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(step.CONFIGS, "small", SMALL)
    monkeypatch.setenv("LGF_BACKEND", "portable")
    row = step.measured("small", "cpu", 2)
    assert row["tokens"] == 72 and row["plain"]["step_ms"] > 0 and "loss_ms" not in row["plain"]
    assert list(row["losses"]) == ["eager", "compile", "portable"], "the last as the library chooses"
    for it in row["losses"].values():
        assert it["loss_ms"] > 0 and it["step_ms"] > 0
        assert sys.platform != "linux" or it["peak_bytes"] > 0


def test_the_first_step_warms_up(monkeypatch):
    now, takes = [0.0], iter([100.0, 2.0, 4.0, 6.0])

    def action():
        now[0] += next(takes)

    monkeypatch.setattr(step.timing, "now", lambda: now[0])
    assert step._medians({"a": action}, "cpu", 3) == {"a": 4000.0}


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell peaks")
def test_the_rise_is_what_an_action_allocates_at_its_peak():
    def action():
        kept = torch.ones(32, 2**20)
        del kept
        return torch.ones(8, 2**20)

    held = torch.ones(16, 2**20)
    rise = memory.rise(action, "cpu")
    assert 0.95 * 2**27 < rise < 1.3 * 2**27
    assert held.sum() == held.numel()


def test_counted_products_of_a_step(monkeypatch):
    """Twice the layers cost twice the products, but for what is not in the layers."""
    monkeypatch.setitem(step.CONFIGS, "small", SMALL)
    monkeypatch.setitem(step.CONFIGS, "deeper", replace(SMALL, layers=4))
    small, deeper = step.counted("small"), step.counted("deeper")
    per_layer = (deeper["counted_step_flop"] - small["counted_step_flop"]) / 2
    tokens, width = 72 + 2, 64
    linear = (
        2 * tokens * width * width * (4 + 8)
    )  # query, key, value, out, and the feed-forward of four times the width
    assert (
        2 * linear < per_layer < 4 * linear
    )  # forward, and backward by inputs, with some on top for attention and LoRA
    assert small["counted_loss_flop"] == SMALL.loss_case("cpu").work()["both"].flop


def test_what_is_said():
    row = {
        "config": "tiny", "parameters": 10e6, "tokens": 72, "plain": {"step_ms": 90.0, "peak_bytes": 2**22},
        "losses": {
            "eager": {"step_ms": 200.0, "loss_ms": 50.0, "peak_bytes": 2**24},
            "native": {"step_ms": 100.0, "loss_ms": 2.0, "peak_bytes": None},
        },
        "counted_step_flop": 10**12, "counted_loss_flop": 10**9,
    }  # fmt: skip
    text = "\n".join(
        " ".join(line.split()) for line in table.of_step(row, table.PAGE).splitlines()
    )  # tables are padded
    assert "| none | 90.0 ms | 4.0 MiB | | |" in text
    assert "| eager | 200.0 ms | 16.0 MiB | 50.0 ms | 25.0 % |" in text
    assert "| native | 100.0 ms | | 2 ms | 2.0 % |" in text
    assert "10 M parameters, 72 video tokens, 90.0 ms without" in text and "0.1000 %" in text
