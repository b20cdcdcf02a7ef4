"""From a clip to MoAlign's two runs, and to Track4Gen's, with the commands of the trainer's page and tiny random models."""

import json
import re
from pathlib import Path

import numpy as np
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
from trainer.test_chain import SIZE, commands_of
from trainer.training_data import extraction, tiny


def lgf(*words):
    assert lgf_cli.main([str(word) for word in words]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)


def history(run):
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([row.get("alignment", row.get("l1")) for row in rows])


PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
PAIRS = [("01_dog.mp4", "cogvideox"), ("generated", "wan"), ("generated", "cogvideox")]


@pytest.fixture(params=[*PAIRS[:2], pytest.param(PAIRS[2], marks=pytest.mark.slow)], ids="-".join)
def commands(request, tmp_path, monkeypatch):
    """Those of the page's MoAlign, in a folder with a playground."""
    name, family = request.param
    monkeypatch.chdir(tmp_path)
    words = ["tiny", "--video", str(clip_called(name, tmp_path)), "--family", family]
    assert lgf_cli.run("playground", "lgf_demo.playground", words, "") == 0
    extract, *others = commands_of("docs/trainer.md")
    return [extract + (SIZE if family == "wan" else []), *others]


def test_from_a_clip_to_moalign(commands):
    extract, stage1, apply, stage2 = commands
    lgf(*extract)
    cache = WindowCache("tiny/motion-cache")
    window = cache.read(cache.keys()[0]).tensors
    assert window["features_videomae"].shape == (4, 2, 3, 16) and window["flow"].shape == (3, 2, 128, 192)

    lgf(*stage1)
    losses = history("tiny/motion-run")
    assert losses[-5:].mean() < losses[:5].mean()
    lgf(*apply)
    assert cache.read(cache.keys()[0]).tensors["features_motion"].shape == (4, 2, 3, 64)

    lgf(*stage2)
    losses = history("tiny/moalign-run")
    assert losses[-5:].mean() < losses[:5].mean()
    assert Path("tiny/moalign-run/transformer").is_dir()
    for recipe in ("moalign-raw-features", "videorepa"):
        lgf(
            "train",
            recipe,
            *tiny(Path("tiny"), data__cache=Path("tiny/motion-cache"), run__output=Path("tiny", recipe)),
        )
        assert len(history(f"tiny/{recipe}")) == 3 and (history(f"tiny/{recipe}") > 0).all()


@pytest.fixture
def place(tmp_path):
    make_tiny_pipeline(tmp_path / "model", image_to_video=False)
    return tmp_path


def test_from_flow_of_ones_own_to_track4gen(tmp_path, monkeypatch):
    """As the page says it, with the generated clip's flow, and with a file that its program writes."""
    monkeypatch.chdir(tmp_path)
    assert lgf_cli.run("playground", "lgf_demo.playground", ["tiny"], "") == 0
    extract, evaluate, train = commands_of("docs/trainer.md", 1)
    lgf(*extract)
    cache = WindowCache("tiny/track-cache")
    window = cache.read(cache.keys()[0]).tensors
    tracks, visible = window["tracks"].float(), window["tracks_visible"].bool()
    step = tracks.diff(dim=1)[visible[:, 1:] & visible[:, :-1]]
    moving = step[:, 1] > 1.5
    assert 0.1 < moving.float().mean() < 0.5  # the square's share of the picture is a sixth
    assert (step[moving] - torch.tensor([0.0, 2.0])).abs().max() < 0.1 and (step[:, 0].abs() < 0.1).all()
    lgf(*evaluate)
    assert list(Path("tiny/tracks").glob("*.png"))
    lgf(*train)
    losses = history("tiny/track-run")
    assert losses[-5:].mean() < losses[:5].mean()

    known = np.load("tiny/clip.flow.npy")
    program = re.search(
        r"```python\n(import numpy as np\nfrom lgf_trainer\.data\.video.*?)```", PAGE.read_text(), re.DOTALL
    )[1]
    exec(program, {"flow": lambda first, second: np.zeros((2, *first.shape[1:]))})
    written = np.load("tiny/clip.flow.npy")
    assert (written.shape, written.dtype) == (known.shape, known.dtype) and not written.any()


def test_a_playground_of_a_given_clip_has_no_flow_of_another(tmp_path, capsys):
    for words in ([], ["--video", str(clip_called("generated", tmp_path))]):
        assert lgf_cli.run("playground", "lgf_demo.playground", [str(tmp_path / "tiny"), *words], "") == 0
        assert (tmp_path / "tiny" / "clip.flow.npy").exists() == (not words)
    assert "Writing" not in capsys.readouterr().err  # no terminal, no bars


def test_from_a_clip_to_track4gen(place):
    """RAFT does not look at 64 x 96 pixels: flow beside the video is taken, and of a still picture."""
    clip = clip_called("generated", place)
    still = torch.zeros(2, 28, 2, 8, 12)
    save_file({"forward": still[0], "backward": still[1]}, place / "walk.flow.safetensors")
    options = ["tracks.files=.flow.safetensors", "tracks.points=20"]
    words = ["--teachers", "tracks", "--teacher-options", *options]
    extract = extraction(clip, place / "cache", place / "model", *words)
    lgf(*extract)
    cache = WindowCache(place / "cache")
    assert cache.read(cache.keys()[0]).tensors["tracks"].shape == (20, 9, 2)
    lgf("eval", "tracks", place / "cache", "--output", place / "pictures", "--windows", 1)
    assert len(list((place / "pictures").glob("*.png"))) == 1
    lgf("train", "track4gen", *tiny(place, run__output=place / "run"))
    assert (history(place / "run") > 0).all()
    keys = cache.keys()
    save_file({"forward": still[0] + 1, "backward": still[1] - 1}, place / "walk.flow.safetensors")
    lgf(*extract)
    assert set(cache.keys()) > set(keys)  # other flow makes other windows
