"""Two processes on a CPU, with gloo: copies (DDP) and shards (FSDP2) train like one process on the same global batch."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

from diffusers import CogVideoXImageToVideoPipeline
from lgf_cli import main as lgf
from lgf_trainer.run import TrainingRun
from lgf_trainer.train import parse
from safetensors.torch import load_file
from trainer.processes import run_two
from trainer.training_data import tiny

ROOT = Path(__file__).parents[2]
GLOO = torch.distributed.is_available() and torch.distributed.is_gloo_available()
KINDS = {"copied": "False", "sharded": "True"}


pytestmark = pytest.mark.skipif(not GLOO, reason="this torch has no gloo")


@pytest.fixture(scope="module")
def place(tiny_place, tmp_path_factory):
    """Four steps of one process and of two, copied and sharded; and the latter going on from the second step."""
    place = tmp_path_factory.mktemp("distributed")

    def run(name, **changes):
        options = {
            "training__steps": 4,
            "training__batch": 4,
            "training__clip": 1e9,
            "training__ema": 0.5,
            "run__keep": 9,
        }
        return ["sam2videox", *tiny(tiny_place, run__output=place / name, **(options | changes))]

    jobs = []
    for kind, shard in KINDS.items():
        again = {"copy": [str(place / kind), str(place / f"{kind}-again")], "after": 2}
        jobs += [run(kind, run__shard=shard), again, run(f"{kind}-again", run__shard=shard)]
    jobs += [run("half", run__shard="True", model__dtype="bfloat16", training__precision="bf16", model__dropout=0.1)]
    (place / "jobs.json").write_text(json.dumps(jobs))
    run_two(Path(__file__).with_name("distributed_runs.py"), place / "jobs.json")
    lgf(["train", *run("one")])
    return place


def history(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = ("diffusion", "alignment", "gradient", "weight", "rate/lora", "rate/projector")
    return torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)


def files(output):
    names = ["pytorch_lora_weights", "projector"]
    return {name + key: value for name in names for key, value in load_file(output / f"{name}.safetensors").items()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_process_on_the_same_batch(place, kind):
    def first_moments(name):
        moments = load_file(place / name / "checkpoints" / "step-00000001" / "optimizer.safetensors")
        return {
            key: value / 0.1 for key, value in moments.items() if key.startswith("exp_avg/")
        }  # after a step: (1 - 0.9) g

    one, two = first_moments("one"), first_moments(kind)
    assert one.keys() == two.keys() and len(one) > 30
    assert all(gradient.abs().max() > 0 for key, gradient in one.items() if "lora_B" in key or "projector" in key)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_rates_and_weights_are_those_of_one_process(place, kind):
    one, two = history(place / "one"), history(place / kind)
    assert len(one) == 4 and torch.equal(one[:, 3:], two[:, 3:])  # schedules do not know how many processes there are
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
    for folder in (".", "ema"):
        torch.testing.assert_close(files(place / kind / folder), files(place / "one" / folder), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_is_exact(place, kind):
    assert torch.equal(history(place / f"{kind}-again"), history(place / kind))
    ours, theirs = files(place / f"{kind}-again"), files(place / kind)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_sharded_run_can_go_on_in_one_process(place, tiny_place):
    import shutil

    shutil.copytree(place / "sharded", place / "alone")
    for step in (3, 4):
        shutil.rmtree(place / "alone" / "checkpoints" / f"step-{step:08d}")
    options = parse(
        [str(place / "sharded" / "recipe.yaml"), "--run.output", str(place / "alone"), "--run.shard", "False"]
    )
    TrainingRun(options).train()
    torch.testing.assert_close(history(place / "alone"), history(place / "one"), rtol=1e-5, atol=1e-6)


def test_what_a_sharded_run_saves_loads_into_diffusers(place, tiny_place):
    def predict(name):
        pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tiny_place / "model")
        pipeline.load_lora_weights(place / name)
        rng = torch.Generator().manual_seed(0)
        hidden, text = torch.randn(1, 3, 8, 8, 12, generator=rng), torch.randn(1, 16, 16, generator=rng)
        with torch.no_grad():
            return pipeline.transformer(hidden, text, torch.tensor([500]), return_dict=False)[0]

    torch.testing.assert_close(predict("sharded"), predict("one"), rtol=1e-3, atol=1e-4)


def test_half_precision_shards_train(place):
    rows = history(place / "half")
    assert len(rows) == 4 and rows.isfinite().all()
    assert {weight.dtype for weight in files(place / "half").values()} == {torch.float32}
    torch.testing.assert_close(rows[0, :2], history(place / "one")[0, :2], rtol=0.1, atol=0)
