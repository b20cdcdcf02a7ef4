"""From a clip to MoAlign's two runs, and to Track4Gen's, with the commands of the trainer's page and tiny random models."""

import json

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")
pytest.importorskip("torchvision")

import lgf_cli
from accelerate.state import AcceleratorState
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.testing import make_tiny_pipeline
from safetensors.torch import save_file
from support.clips import clip_called
from torchvision.models.optical_flow import raft_small
from trainer.training_data import extraction, tiny
from transformers import VideoMAEConfig, VideoMAEModel


@pytest.fixture(params=["generated", "01_dog.mp4"])
def clip(request, tmp_path):
    return clip_called(request.param, tmp_path)


@pytest.fixture
def place(tmp_path):
    """A folder with tiny models: a pipeline, RAFT's small network and a VideoMAE."""
    torch.manual_seed(0)
    make_tiny_pipeline(tmp_path / "model", image_to_video=False)
    save_file(raft_small().state_dict(), tmp_path / "raft.safetensors")
    config = VideoMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64, num_frames=4
    )
    VideoMAEModel(config).save_pretrained(tmp_path / "videomae")
    return tmp_path


def lgf(*words):
    assert lgf_cli.main([str(word) for word in words]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)


def extract(place, clip, *teachers, options):
    words = ["--teachers", *teachers, "--teacher-options", *options]
    lgf(*extraction(clip, place / "cache", place / "model", *words))
    return WindowCache(place / "cache")


def test_from_a_clip_to_moalign(place, clip):
    videomae = [f"videomae.model={place / 'videomae'}", "videomae.reduction=2", "raft.size=[128, 136]"]
    raft = ["raft.network=small", f"raft.weights={place / 'raft.safetensors'}", "raft.updates=1"]
    cache = extract(place, clip, "videomae", "raft", options=[*videomae, *raft])
    window = cache.read(cache.keys()[0]).tensors
    assert window["features_videomae"].shape == (4, 2, 3, 16) and window["flow"].shape == (3, 2, 128, 136)

    words = tiny(place, run__output=place / "motion")
    lgf("train", "moalign-stage1", *words)
    lgf("apply", place / "motion", place / "cache")
    assert cache.read(cache.keys()[0]).tensors["features_motion"].shape == (4, 2, 3, 64)

    for recipe in ("moalign", "moalign-raw-features", "videorepa"):
        lgf("train", recipe, *tiny(place, run__output=place / recipe))
        rows = [json.loads(line) for line in (place / recipe / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 3 and all(row["alignment"] > 0 for row in rows)
    assert (place / "moalign" / "transformer").is_dir()


def test_from_a_clip_to_track4gen(place):
    """RAFT does not look at 64 x 96 pixels: flow beside the video is taken, and of a still picture."""
    clip = clip_called("generated", place)
    still = torch.zeros(2, 28, 2, 8, 12)
    save_file({"forward": still[0], "backward": still[1]}, place / "walk.flow.safetensors")
    options = ["tracks.files=.flow.safetensors", "tracks.points=20"]
    cache = extract(place, clip, "tracks", options=options)
    assert cache.read(cache.keys()[0]).tensors["tracks"].shape == (20, 9, 2)
    lgf("eval", "tracks", place / "cache", "--output", place / "pictures", "--windows", 1)
    assert len(list((place / "pictures").glob("*.png"))) == 1
    lgf("train", "track4gen", *tiny(place, run__output=place / "run"))
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["alignment"] > 0 for row in rows)
    keys = cache.keys()
    save_file({"forward": still[0] + 1, "backward": still[1] - 1}, place / "walk.flow.safetensors")
    extract(place, clip, "tracks", options=options)
    assert set(cache.keys()) > set(keys)  # other flow makes other windows
