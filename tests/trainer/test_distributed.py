"""Two processes on a CPU, with gloo: copies (DDP) and shards (FSDP2) train like one process on the same global batch; videos are
extracted and generated once.
"""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import CogVideoXImageToVideoPipeline, LTXVideoTransformer3DModel, WanTransformer3DModel
from lgf_cli import main as lgf
from lgf_trainer.commands import parse_recipe
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.runtime.context import unsupported_reason
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.testing import HEIGHT, WIDTH
from lgf_trainer.train import TrainingRun
from PIL import Image
from safetensors.torch import load_file
from support.clips import write_clip
from trainer.processes import run_two
from trainer.training_data import extraction, tiny

ROOT = Path(__file__).parents[2]
GLOO = torch.distributed.is_available() and torch.distributed.is_gloo_available()
KINDS = {"copied": "False", "sharded": "True"}
FULL = {"model__train": "full", "training__steps": 2, "optimisers__full__rate": 1e-4}


pytestmark = pytest.mark.skipif(not GLOO, reason="this torch has no gloo")


@pytest.fixture(scope="module")
def place(tiny_place, wan_place, tmp_path_factory):
    """Four steps of one process and of two, copied and sharded; and the latter going on from the second step. Then windows of
    clips, extracted by one process and by two, and videos with a trained LoRA.

    Two processes are started once: it takes them longer than all that they do.
    """
    place = tmp_path_factory.mktemp("distributed")

    def run(name, model=tiny_place, **changes):
        options = {
            "training__steps": 4,
            "training__batch": 4,
            "training__clip": 1e9,
            "training__ema": 0.5,
            "run__keep": 9,
        }
        return ["train", "sam2videox", *tiny(model, run__output=place / name, **(options | changes))]

    jobs = {}
    for kind, shard in KINDS.items():
        jobs[kind] = run(kind, run__shard=shard)
        jobs[f"{kind}-copy"] = {"copy": [str(place / kind), str(place / f"{kind}-again")], "after": 2}
        jobs[f"{kind}-again"] = run(f"{kind}-again", run__shard=shard)
        jobs[f"wan-{kind}"] = run(f"wan-{kind}", wan_place, run__shard=shard, training__steps=2)
        jobs[f"full-{kind}"] = run(f"full-{kind}", run__shard=shard, **FULL)
    for kind in ("context", "context-sharded"):
        jobs[f"wan-{kind}"] = run(
            f"wan-{kind}", wan_place, run__context=2, run__shard=str("sharded" in kind), training__steps=2
        )
    half = {"model__dtype": "bfloat16", "training__precision": "bf16", "model__dropout": 0.1, "training__steps": 2}
    jobs["half"] = run("half", run__shard="True", **half)
    jobs["extract-two"] = extracting(place, tiny_place / "model", "extract-two")
    jobs["sample"] = sampling(place, tiny_place / "model")
    (place / "jobs.json").write_text(json.dumps(jobs))
    run_two(Path(__file__).with_name("distributed_runs.py"), place / "jobs.json")
    wan, full = run("wan-one", wan_place, training__steps=2), run("full-one", **FULL)
    for words in run("one"), wan, full, extracting(place, tiny_place / "model", "extract-one"):
        assert lgf(words) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    return place


def extracting(place, model, output):
    """From three clips, one of them too short."""
    (place / "clips").mkdir(exist_ok=True)
    for name, frames in (("a", 15), ("b", 20), ("short", 5)):
        write_clip(place / "clips" / f"{name}.mp4", frames=frames)
    return extraction(place / "clips", place / output, model, "--stride", 5, "--teacher", "none")


def sampling(place, model):
    words = ["sample", "--model", model, "--lora", place / "copied", "--output", place / "videos", "--steps", 1]
    words += ["--prompt", "a dog", "--image", place / "dog.png", "--samples", 3, "--no-compare"]
    Image.new("RGB", (WIDTH, HEIGHT)).save(place / "dog.png")
    return [str(word) for word in words]


def history(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = ("diffusion", "alignment", "gradient", "weight", "rate/lora", "rate/projector")
    return torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)


def files(output):
    names = ["pytorch_lora_weights", "projector"]
    return {name + key: value for name in names for key, value in load_file(output / f"{name}.safetensors").items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["", "wan-", "full-"], ids=["cogvideox", "wan", "all weights"])
def test_gradients_are_those_of_one_process_on_the_same_batch(place, what, kind):
    def first_moments(name):
        moments = load_file(place / name / "checkpoints" / "step-00000001" / "optimizer.safetensors")
        return {
            key: value / 0.1 for key, value in moments.items() if key.startswith("exp_avg/")
        }  # after a step: (1 - 0.9) g

    one, two = first_moments(f"{what}one"), first_moments(what + kind)
    assert one.keys() == two.keys() and len(one) > 30
    assert all(gradient.abs().max() > 0 for key, gradient in one.items() if "lora_B" in key or "projector" in key)
    assert (what == "full-") == (not any("lora" in key for key in one))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["context", "context-sharded"])
def test_tokens_spread_over_processes_have_the_gradients_of_one_process(place, kind):
    """Every weight's, the projector's and the LoRA's: diffusers' gathers pass on parts, ours sum, DDP takes means."""
    one, two = (
        load_file(place / f"wan-{name}" / "checkpoints" / "step-00000001" / "optimizer.safetensors")
        for name in ("one", kind)
    )
    assert one.keys() == two.keys() and sum("lora_B" in key for key in one) > 10
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(history(place / f"wan-{kind}"), history(place / "wan-one"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_groups_of_two_processes(place, wan_place):
    """Each window's tokens are spread over two processes, and windows over two groups of them."""
    output = place / "wan-groups"
    changes = {"training__steps": 2, "training__batch": 4, "training__clip": 1e9, "training__ema": 0.5}
    words = ["train", "sam2videox", *tiny(wan_place, run__output=output, run__context=2, **changes)]
    (place / "groups.json").write_text(json.dumps({"groups": words}))
    run_two(Path(__file__).with_name("distributed_runs.py"), place / "groups.json", processes=4)
    torch.testing.assert_close(history(output), history(place / "wan-one"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(files(output), files(place / "wan-one"), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_spread_is_refused_before_weights_are_read(tiny_place, wan_place, tmp_path, monkeypatch):
    def refused(place, **changes):
        changes = {"run__context": 2, "run__output": tmp_path} | changes
        with pytest.raises(TrainerError) as error:
            TrainingRun(parse_recipe([changes.pop("recipe", "sam2videox"), *tiny(place, **changes)]))
        return str(error.value)

    assert "spreads each window over 2 processes, and there are 1: start a multiple of it" in refused(wan_place)
    monkeypatch.setattr(Accelerator, "num_processes", 6)
    assert "no plan for CogVideoXTransformer3DModel, whose attention would silently be" in refused(tiny_place)
    assert "2 attention heads cannot be divided among 3 processes" in refused(wan_place, run__context=3)
    assert "and the task motion-subspace trains none" in refused(tiny_place, recipe="moalign-stage1")
    transformer = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=8)
    assert unsupported_reason(transformer, 2, 7).startswith("7 tokens cannot be divided among 2 processes")
    assert unsupported_reason(transformer, 2, 8) is None
    transformer = LTXVideoTransformer3DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1)
    assert "splits the model's inputs, noise levels of tokens not among them" in unsupported_reason(transformer, 2, 8)


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
    options = parse_recipe(
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
    assert len(rows) == 2 and rows.isfinite().all()
    assert {weight.dtype for weight in files(place / "half").values()} == {torch.float32}
    torch.testing.assert_close(rows[0, :2], history(place / "one")[0, :2], rtol=0.1, atol=0)


def test_two_processes_extract_what_one_does(place):
    one, two = WindowCache(place / "extract-one"), WindowCache(place / "extract-two")
    assert len(one.keys()) == 2 + 3 and two.keys() == one.keys()
    assert all(two.path(key).read_bytes() == one.path(key).read_bytes() for key in one.keys())
    alone, both = (json.loads((cache.folder / "report.json").read_text()) for cache in (one, two))
    assert all(both[name] == alone[name] for name in ("videos", "written", "present", "skipped", "bytes"))
    accounts = [(place / f"extract-two-{rank}.txt").read_text().count("videos: ") for rank in (0, 1)]
    assert accounts == [1, 0], "one account, not one for each process"


def test_two_processes_share_the_prompts(place):
    """Each makes its own, none is made twice, and one speaks for both."""
    said, silence = ((place / f"sample-{rank}.txt").read_text() for rank in (0, 1))
    assert said.splitlines() == [
        "3 videos to generate, 0 are there",
        f"3 videos are in {place / 'videos'}, and their grids in {place / 'videos' / 'grid'}",
    ]
    assert not silence
    for folder, kind in (("grid", "png"), ("with", "mp4")):
        names = sorted(path.name for path in (place / "videos" / folder).iterdir())
        assert names == [f"dog-{number}.{kind}" for number in range(3)]
