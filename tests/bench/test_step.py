"""The share of a training step: a small step really trains, and what is said follows from the numbers."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from dataclasses import replace

from lgf_kernels.bench import counting, step

SMALL = replace(step.CONFIGS["tiny"], heads=1, layers=2, grid=(3, 4, 6), frames=3, text=(2, 8), rank=4)


def test_a_step_trains_the_adapters_and_the_projector_only_with_the_loss():
    torch.manual_seed(0)
    training = step.Training(SMALL, "cpu")
    with torch.no_grad():
        plain, aligned = training.loss(False), training.loss(True)
    assert aligned > plain
    training.step(aligned=False)
    assert all(parameter.grad is None for parameter in training.model.projector.parameters())
    training.step(aligned=True)
    assert all(parameter.grad is not None for parameter in training.model.projector.parameters())
    trained = [name for name, p in training.model.transformer.named_parameters() if p.grad is not None]
    assert trained and all("lora" in name for name in trained)


def test_measured(monkeypatch):
    monkeypatch.setitem(step.CONFIGS, "small", SMALL)
    row = step.measured("small", "cpu", 2)
    assert 0 < row["loss_ms"] < row["step_ms"] and row["tokens"] == 72 and row["plain_ms"] > 0


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
    assert small["counted_loss_flop"] == counting.work(SMALL.loss_case)["both"].flop


def test_the_sentence():
    row = {
        "config": "tiny", "parameters": 10e6, "tokens": 72, "step_ms": 100.0, "plain_ms": 90.0, "loss_ms": 2.0,
        "counted_step_flop": 10**12, "counted_loss_flop": 10**9,
    }  # fmt: skip
    assert "2.0 % of it" in step.sentence(row) and "0.1000 %" in step.sentence(row)
