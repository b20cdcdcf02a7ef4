"""MoAlign's first stage: shapes, what it learns and what it cannot, and the features that it leaves."""

import json

import pytest
import torch

pytest.importorskip("diffusers")

import lgf_cli
from accelerate.state import AcceleratorState
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.tasks.motion import MotionSubspace, end_point_error, is_held_out
from torch import nn
from torch.nn.functional import l1_loss

WORDS = ["--training.precision", "no", "--training.batch", "2"]
WORDS += ["--run.tracker", "none", "--run.workers", "0"]


def test_the_papers_shapes_and_sizes():
    with torch.device("meta"):
        model = MotionSubspace(768, (128, 192))
        features = torch.randn(2, 24, 10, 15, 768)
        assert model(features).shape == (2, 23, 2, 128, 192)
        assert model.compress(features).shape == (2, 24, 10, 15, 64)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.compressor, model.decoder)]
    assert counts == [606_528, 115_666]


def moving_textures(videos, seed, tokens=5, patch=8, rows=4, columns=6, channels=192):
    """Features (videos, tokens, rows, columns, channels) of a frozen random encoder of moving textures, and their flow.

    Each video moves by whole pixels a frame, and a token stands for two frames.
    """
    rng, size = torch.Generator().manual_seed(seed), (rows * patch, columns * patch)
    encoder = torch.randn(channels, 3, 2, patch, patch, generator=torch.Generator().manual_seed(0)) / patch
    features, flows = [], []
    for _ in range(videos):
        v, u = torch.randint(-2, 3, (2,), generator=rng).tolist()
        texture = torch.randn(1, 3, size[0] // 4, size[1] // 4, generator=rng)
        texture = nn.functional.interpolate(texture, size, mode="bicubic")[0]
        frames = torch.stack([texture.roll((t * v, t * u), (1, 2)) for t in range(2 * tokens)], 1)
        features.append(
            nn.functional.conv3d(frames[None], encoder, stride=(2, patch, patch))[0].relu().permute(1, 2, 3, 0)
        )
        flows.append(torch.tensor([2.0 * u, 2.0 * v]).view(1, 2, 1, 1).expand(tokens - 1, 2, *size))
    features = torch.stack(features)
    return (features - features.mean()) / features.std(), torch.stack(flows)


def after_training(features, flow, steps=200):
    torch.manual_seed(0)
    model = MotionSubspace(features.shape[-1], flow.shape[-2:])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(steps):
        chosen = torch.randint(len(features), (4,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        l1_loss(model(features[chosen]), flow[chosen]).backward()
        optimiser.step()
    return model


def test_it_learns_flow_that_is_there_and_none_that_is_not():
    features, flow = moving_textures(400, seed=1)
    unseen, its_flow = moving_textures(24, seed=2)
    models = after_training(features, flow), after_training(features, flow.roll(1, 0))
    with torch.no_grad():
        zero = end_point_error(torch.zeros_like(its_flow), its_flow)
        learnt, shuffled = (end_point_error(model(unseen), its_flow) for model in models)
    assert learnt < 0.5 * zero and shuffled > 0.7 * zero, (learnt, shuffled, zero)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Twelve windows of six videos."""
    made = WindowCache(tmp_path_factory.mktemp("stage1") / "cache", {"frames": 11})
    features, flow = moving_textures(12, seed=3)
    for number in range(12):
        tensors = {"features_videomae": features[number].half(), "flow": flow[number].half()}
        made.write(f"{number // 2:016x}-{number % 2:05d}-0", tensors, {"video": f"{number // 2}.mp4", "start": 0})
    return made


def lgf(*words):
    assert lgf_cli.main([str(word) for word in words]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)


def stage1(cache, output, *words):
    lgf("train", "moalign-stage1", "--data.cache", cache.folder, "--run.output", output, *WORDS, *words)


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_train_stop_go_on_apply(cache, tmp_path, capsys):
    held = ["--task_options", "{held_out: 0.4}"]
    stage1(cache, tmp_path / "whole", "--training.steps", 4, "--run.save_every", 2, *held)
    whole = rows(tmp_path / "whole")
    assert [("held_out/end_point_error" in row) for row in whole] == [False, True, False, True]
    assert all(row["l1"] > 0 and row["end_point_error"] > 0 for row in whole)
    kept = {key for key in cache.keys() if is_held_out(key, 0.4)}
    zero = [cache.read(key).tensors["flow"].float().norm(dim=1).mean().item() for key in kept]
    assert whole[-1]["held_out/of_zero_flow"] == pytest.approx(sum(zero) / len(zero), rel=1e-4)
    assert len({key.partition("-")[0] for key in kept}) * 2 == len(kept) and 0 < len(kept) < 12

    stage1(cache, tmp_path / "again", "--training.steps", 4, "--run.save_every", 2, *held)
    for folder in (tmp_path / "again" / "checkpoints").glob("step-00000004"):
        folder.rename(tmp_path / "gone")
    (tmp_path / "again" / "weights.safetensors").unlink()
    stage1(cache, tmp_path / "again", "--training.steps", 4, "--run.save_every", 2, *held)
    losses = [[row["l1"] for row in rows(tmp_path / name)] for name in ("whole", "again")]
    assert losses[0] == losses[1]

    lgf("apply", tmp_path / "whole", cache.folder)
    window = cache.read(cache.keys()[0]).tensors
    assert window["features_motion"].shape == (5, 4, 6, 64) and window["features_motion"].dtype == torch.float16
    model = MotionSubspace(192, (32, 48))
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "whole" / "weights.safetensors"))
    with torch.no_grad():
        expected = model.compress(window["features_videomae"].float()[None])[0]
    torch.testing.assert_close(window["features_motion"].float(), expected, rtol=1e-3, atol=1e-3)
    capsys.readouterr()
    lgf("apply", tmp_path / "whole", cache.folder)
    assert "0 windows written, 12 had it already" in capsys.readouterr().out

    other = WindowCache(tmp_path / "other", {"frames": 11})  # of videos that it was not trained on, without their flow
    other.write("a-0-0", {"features_videomae": window["features_videomae"]}, {"video": "", "start": 0})
    lgf("apply", tmp_path / "whole", other.folder)
    assert torch.equal(other.read("a-0-0").tensors["features_motion"], window["features_motion"])
    other.write("b-0-0", {"latents": torch.zeros(1)}, {"video": "", "start": 0})
    with pytest.raises(
        SystemExit, match=r"have no features_videomae, which the motion subspace reads; they have latents"
    ):
        lgf("apply", tmp_path / "whole", other.folder)


def test_what_it_cannot_be_made_of(cache, tmp_path):
    other = WindowCache(tmp_path / "other", {"frames": 11})
    other.write("a-0-0", {"features_videomae": torch.zeros(5, 4, 6, 8)}, {"video": "", "start": 0})
    for place, words, message in (
        (other, [], "have no flow, which the motion subspace reads.*lgf extract --teachers raft"),
        (cache, ["--task_options", "{features: dino}"], "have no features_dino.*--teachers dino"),
        (cache, ["--task_options", "{held_out: 0.999999}"], "holds out all windows"),
        (cache, ["--task_options", "{held: 1}"], "held"),
    ):
        with pytest.raises(SystemExit, match=message):
            stage1(place, tmp_path / "run", *words)
        AcceleratorState._reset_state(reset_partial_state=True)
    other.write("b-0-0", {"features_videomae": torch.zeros(5, 4, 6, 8), "flow": torch.zeros(5, 2, 8, 8)}, {})
    (tmp_path / "other" / "windows" / "a-0-0.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"flow is \(T - 1, 2, height, width\)"):
        stage1(other, tmp_path / "run")


def test_the_way_out_of_nan_names_what_it_is_trained_with(tmp_path):
    bad = WindowCache(tmp_path / "cache", {"frames": 11})
    bad.write("a-0-0", {"features_videomae": torch.full((5, 4, 6, 8), torch.nan), "flow": torch.zeros(4, 2, 8, 8)}, {})
    with pytest.raises(SystemExit) as end:
        stage1(bad, tmp_path / "run", "--training.batch", 1)
    message = (
        "the l1 loss is nan. Train into a new --run.output with lower rates (--optimisers.full.rate), or in float32"
    )
    assert message in str(end.value) and "lora" not in str(end.value) and "alignment" not in str(end.value)


def test_apply_needs_a_finished_run_of_such_a_task(cache, tmp_path):
    with pytest.raises(SystemExit, match=r"holds no recipe\.yaml: give the folder of a finished run"):
        lgf("apply", tmp_path, cache.folder)
    (tmp_path / "recipe.yaml").write_text("base: sam2videox")
    with pytest.raises(
        SystemExit, match=r"holds no weights\.safetensors.*makes something of windows \(this one is of diffusion"
    ):
        lgf("apply", tmp_path, cache.folder)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="a run of the task diffusion, which makes nothing of windows"):
        lgf("apply", tmp_path, cache.folder)
