"""Runs that were begun, and recipes that were written, before the trainer had families, `options` and full training."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

from lgf_cli import main as lgf
from lgf_trainer.generators.lora import find_lora
from lgf_trainer.runtime.recipe import read_recipe
from trainer.run_outputs import LOSSES, metrics

BEFORE = Path(__file__).with_name("run_of_before")  # two steps of four, as the trainer left them


@pytest.fixture
def run(tiny_place, tmp_path):
    """The folder of such a run, with the tiny model and cache where it looks for them."""
    for folder in ("model", "cache"):
        shutil.copytree(tiny_place / folder, tmp_path / folder)
    shutil.copytree(BEFORE, tmp_path / "run")
    for path in (tmp_path / "run" / "recipe.yaml", *(tmp_path / "run").rglob("checkpoint.json")):
        path.write_text(path.read_text().replace("PLACE", str(tmp_path)))
    return tmp_path / "run"


def test_a_recipe_of_before_is_read(run):
    recipe = read_recipe(str(run / "recipe.yaml"))
    assert (recipe.model.rank, recipe.alignment.lgf.temperature, recipe.alignment.relation.tau) == (1, 0.1, 10.0)
    assert (recipe.model.train, recipe.start_from, recipe.alignment.combine) == ("lora", None, "sum")


def test_a_run_of_before_goes_on_as_it_would_have(run):
    """From its checkpoint, with the windows, the noise and the moments that it would have had."""
    expected = [json.loads(line) for line in (BEFORE / "metrics-of-all-steps.jsonl").read_text().splitlines()]
    assert lgf(["train", str(run / "recipe.yaml")]) == 0
    found = metrics(run)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    pairs = [[torch.tensor([[row[name] for name in LOSSES] for row in rows]) for rows in (found, expected)]][0]
    torch.testing.assert_close(*pairs, rtol=1e-3, atol=1e-5)
    assert find_lora(run).is_file() and (run / "ema" / "projector.safetensors").is_file()
    assert lgf(["train", str(run / "recipe.yaml"), "--training.steps", "4"]) == 0


def test_a_damaged_checkpoint_of_before_is_noticed(run, capsys):
    path = run / "checkpoints" / "step-00000002" / "projector.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert lgf(["train", str(run / "recipe.yaml")]) == 0
    assert "step-00000002 is damaged" in capsys.readouterr().out
