"""The counted memory against what can be counted by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lgf_trainer.runtime.recipe import read_recipe
from recipe_memory import Memory, _kept, block_at_depth, count, models, tables

PROJECTOR = (
    3072 * 768 + 768 + 3 * 768**2 + 768 + 2 * 768 + 768 * 512 + 512 + 2 * 512 + 512 * 256 + 256 + 2 * 256 + 256**2 + 256
)
LORA = 42 * 4 * 2 * 256 * 3072


def test_the_documentation_shows_what_the_command_prints():
    shown = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text()
    for table in tables():
        assert table in shown


def test_trained_parameters_of_the_paper():
    memory = count(read_recipe("sam2videox"), dict(models())["CogVideoX-5B-I2V"])
    assert memory.trained == LORA + PROJECTOR
    assert round(LORA / 1e6, 1) == 264.2
    assert memory.training == 16 * memory.trained
    assert memory.inputs == 42 * 2 * 3072 * (13 * 30 * 45 + 226)
    assert 10e9 < memory.weights < 12e9  # 5 billion in two bytes, and the learned positions


def test_each_familys_recipe_aligns_the_block_that_is_as_deep_as_the_papers():
    found = dict(models())
    assert {generator.name for generator in found.values()} == {"cogvideox", "wan", "hunyuan", "ltx"}
    for name in ("CogVideoX-5B", "Wan2.1-T2V-1.3B", "HunyuanVideo", "LTX-Video-2B"):
        generator = found[name]
        assert read_recipe(generator.own_recipe).alignment.block == block_at_depth(generator.layers), name


def test_hunyuans_lora_and_inputs_counted_by_hand():
    memory, width, tokens = count(read_recipe("hunyuan-sam2videox"), dict(models())["HunyuanVideo"]), 3072, 33 * 45 * 80
    assert memory.trained - PROJECTOR == (20 * 8 + 40 * 3) * 2 * 256 * width
    assert memory.inputs == 60 * 2 * width * (tokens + 256)


def test_without_an_alignment_there_is_no_projector():
    generator = dict(models())["CogVideoX-2B"]
    generator.config["num_layers"] = 1
    one, two = (count(read_recipe(name), generator) for name in ("lora-only", "sam2videox"))
    assert one.trained == 4 * 2 * 256 * 1920 and one.working < two.working and one.inputs == two.inputs


def test_a_sum_and_its_shards():
    memory = Memory(trained=1, weights=80, training=16, inputs=5, working=7)
    assert memory.total() == 108 and memory.total(8) == 12 + 12


def test_what_autograd_keeps():
    x = torch.empty(10, 4, device="meta", requires_grad=True)
    first, second = nn.Linear(4, 8, device="meta"), nn.Linear(8, 2, device="meta")
    assert _kept(lambda: second(nn.functional.gelu(first(x)))) == 4 * (10 * 4 + 10 * 8 + 10 * 8)

    def attend():
        return nn.functional.scaled_dot_product_attention(*(q.view(1, 1, 10, 4),) * 3)

    q = torch.empty(10, 4, device="meta", requires_grad=True)
    assert _kept(attend) == 4 * (10 * 4 + 10 * 4 + 10)  # the three are one; and output, and log of the sums
