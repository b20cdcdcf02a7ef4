"""The share of a training step: a small step trains, and the text follows from the numbers."""

import sys

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lgf_bench import checkout, cli, memory, released, results, step, table
from lgf_bench.providers import provider
from lgf_trainer.generators.base import Generator
from lgf_trainer.runtime.recipe import build

RECIPE = step.TINY_RECIPE | {
    "model": {"dtype": "float32", "rank": 4}, "alignment": {"block": 1}, "projector": {"hidden": 16, "widths": [8], "groups": 4}
}  # fmt: skip
#: Changes that make a model of each family small enough for a test.
SMALL = {
    "cogvideox": {
        "num_attention_heads": 1, "num_layers": 2, "text_embed_dim": 8, "max_text_seq_length": 2,
        "sample_height": 8, "sample_width": 12, "sample_frames": 9,
    },
    "wan": {"num_attention_heads": 1, "num_layers": 2, "ffn_dim": 16, "text_dim": 8},
    "hunyuan": {"num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 8},
    "ltx": {"num_attention_heads": 1, "num_layers": 2, "caption_channels": 8, "cross_attention_dim": 64},
}  # fmt: skip


def small(family: str, **changes) -> step.Config:
    """Return a small model of a family, with a window of 9 x 64 x 96 pixels or so."""
    generator = released.model(Generator.all()[family], "small", SMALL[family] | changes)
    generator.frames, generator.height, generator.width = 9, 64, 96
    return step.Config(generator, build(RECIPE))


def test_a_small_model_of_every_family_is_here():
    assert set(SMALL) == set(Generator.all())


@pytest.mark.parametrize("family", SMALL)
def test_a_step_trains_the_adapters_and_the_projector_only_with_the_loss(family):
    torch.manual_seed(0)
    config = small(family)
    training = step.Training(config, "cpu")
    loss = provider("portable", config.loss_case("cpu"))
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
    monkeypatch.setenv("LGF_BACKEND", "portable")
    row = step.measured("small", small("cogvideox"), "cpu", 2)
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


def test_counted_products_of_a_step():
    """Twice the layers cost twice the products, but for what is not in the layers."""
    two, four = (step.counted("small", small("cogvideox", num_layers=layers)) for layers in (2, 4))
    per_layer = (four["counted_step_flop"] - two["counted_step_flop"]) / 2
    tokens, width = 72 + 2, 64
    linear = (
        2 * tokens * width * width * (4 + 8)
    )  # query, key, value, out, and the feed-forward of four times the width
    assert (
        3 * linear < per_layer < 5 * linear
    )  # forward, again in the backward pass, and its gradients by inputs, with some on top for attention and LoRA
    assert two["counted_loss_flop"] == small("cogvideox").loss_case("cpu").work()["both"].flop


@pytest.mark.parametrize("family", SMALL)
def test_a_step_of_every_family_is_counted_without_memory(family):
    assert step.counted("small", small(family))["counted_step_flop"] > 0


def test_random_weights_have_the_types_of_loaded_ones():
    training = step.Training(step.Config(small("wan").generator, build(RECIPE | {"model": {"rank": 4}})), "cpu")
    kept = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "lora")
    for name, parameter in training.model.transformer.named_parameters():
        expected = torch.float32 if any(part in name for part in kept) else torch.bfloat16
        assert parameter.dtype == expected, name
    training.loss(None).backward()


def test_models_of_the_command():
    assert {step.TINY, step.PAPER, "Wan2.1-T2V-1.3B", "HunyuanVideo", "LTX-Video-2B"} <= set(step.configs())
    config = step.configs()["Wan2.1-T2V-1.3B"]
    assert config.grid == (21, 30, 52) and config.recipe.model.rank == 256 and config.recipe.alignment.block == 17
    assert config.loss_case("cpu").shape == (1, 81, 30, 52, 256)


def test_a_model_measured_at_this_commit_is_not_measured_again(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(step, "measured", refuse)
    words = ["step", "--out", str(tmp_path), "--resume"]
    results.append(tmp_path / results.STEP, [{"model": step.TINY, "commit": "another"}])
    with pytest.raises(AssertionError, match="measured"):
        cli.main(words)
    results.append(tmp_path / results.STEP, [{"model": step.TINY, "commit": checkout.commit()}])
    assert cli.main(words) == 0
    assert f"{step.TINY}: measured before" in capsys.readouterr().out


def test_what_is_said():
    row = {
        "model": "CogVideoX-tiny", "parameters": 10e6, "tokens": 72, "plain": {"step_ms": 90.0, "peak_bytes": 2**22},
        "losses": {
            "eager": {"step_ms": 200.0, "loss_ms": 50.0, "peak_bytes": 2**24},
            "native": {"step_ms": 100.0, "loss_ms": 2.0, "peak_bytes": None},
        },
        "counted": "CogVideoX-5B", "counted_step_flop": 10**12, "counted_loss_flop": 10**9,
    }  # fmt: skip
    text = "\n".join(
        " ".join(line.split()) for line in table.of_step(row, table.PAGE).splitlines()
    )  # tables are padded
    assert "| none | 90.0 ms | 4.0 MiB | | |" in text
    assert "| eager | 200.0 ms | 16.0 MiB | 50.0 ms | 25.0 % |" in text
    assert "| native | 100.0 ms | | 2 ms | 2.0 % |" in text
    assert "10 M parameters, 72 video tokens, 90.0 ms without" in text and "0.1000 %" in text
