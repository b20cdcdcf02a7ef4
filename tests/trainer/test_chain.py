"""From a clip to a LoRA and what it changes, with the commands of the README, on a generated and on a real clip."""

import itertools
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

import lgf_cli
from lgf_demo import playground
from lgf_trainer.data import export
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.runtime.recipe import read_recipe
from safetensors.torch import load_file
from support.clips import clip_called
from trainer.processes import environment, run_and_kill

ROOT = Path(__file__).parents[2]
STEPS = 30


def commands_of(page: str, number: int = 0) -> list[list[str]]:
    """Words of the `lgf` commands that follow the playground in a page, the first time or a later one."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```\n(python -m lgf_demo\.playground.*?)```", text, re.DOTALL)
    playground_line, *block = blocks[number].splitlines()
    assert shlex.split(playground_line, comments=True)[-1] == "tiny"
    commands = [shlex.split(line) for line in block]
    assert {words[0] for words in commands} == {"lgf"}
    return [words[1:] for words in commands]


#: What is said to each command beside the README's words: of CogVideoX alone the files say for which size it is made.
SIZE = ["--frames", "9", "--height", "64", "--width", "96", "--fps", "8"]
FAMILIES = {name: {"extract": SIZE, "sample": SIZE} for name in playground.FAMILIES} | {"cogvideox": {}}
CLIPS = ("generated", "01_dog.mp4", "05_default_juggle.mp4")
#: All families go the same way in `test_generators.py`, with fewer steps.
QUICK = {("01_dog.mp4", "cogvideox"), ("generated", "wan")}


def clips_and_families():
    for pair in itertools.product(CLIPS, FAMILIES):
        yield pytest.param(*pair, id="-".join(pair), marks=() if pair in QUICK else pytest.mark.slow)


@pytest.fixture
def clip(request, tmp_path):
    return clip_called(request.param, tmp_path)


def go_on(words: list[str]) -> int:
    """Train to the end in a process of its own; the step that it began with."""
    command = [sys.executable, "-P", "-m", "lgf_cli", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(re.search(rf" (\d+)/{STEPS} ", done.stderr)[1])


def losses(output: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [[row[name] for name in ("diffusion", "alignment", "gradient")] for row in rows]


def network(path: Path) -> Path:
    class Means(torch.nn.Module):
        def forward(self, video: torch.Tensor) -> torch.Tensor:
            return video.mean(dim=[3, 4]).flatten(1)[:, :6]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Means()).save(str(path))
    return path


@pytest.fixture
def commands(clip, family, tmp_path, monkeypatch):
    """Those of the README, in a folder with a playground of the clip, when the first of them, `extract`, has been run."""
    monkeypatch.chdir(tmp_path)
    words = ["tiny", "--video", str(clip), "--family", family]
    assert lgf_cli.run("playground", "lgf_demo.playground", words, "") == 0
    commands = {words[0]: [*words, *FAMILIES[family].get(words[0], [])] for words in commands_of("README.md")}
    assert lgf_cli.main(commands["extract"]) == 0
    return commands


@pytest.mark.parametrize("clip, family", clips_and_families(), indirect=["clip"])
def test_from_a_clip_to_videos_with_the_lora(commands, clip, capsys):
    cache = WindowCache("tiny/cache")
    windows = [cache.read(key) for key in cache.keys()]
    starts = sorted(window.about["start"] for window in windows)
    assert starts == list(range(0, 20 * len(starts), 20)) and len(starts) == (2 if clip.stem == "walk" else 4)
    for window in windows:
        assert window.tensors["teacher_forward"].shape == (8, 4, 6, 49)
        assert all(tensor.float().isfinite().all() for tensor in window.tensors.values())

    assert lgf_cli.main(commands["train"]) == 0
    history = torch.tensor(losses(Path("tiny/run")))
    assert history[-5:, 1].mean() < 0.5 * history[:5, 1].mean()

    assert lgf_cli.main(commands["sample"]) == 0
    without, trained = (export.decode_video(Path("tiny/out") / arm / "clip.mp4") for arm in ("without", "with"))
    assert without.shape == trained.shape == (9, 64, 96, 3) and (without != trained).any()
    assert Path("tiny/out/grid/clip.png").exists()

    capsys.readouterr()
    assert lgf_cli.main(commands["eval"]) == 0
    printed = capsys.readouterr().out
    assert len(list(Path("tiny/motion").glob("*.png"))) == printed.count("motion can be read") == len(starts) + 1

    more = [*commands["sample"], "--samples", "2", "--output", "tiny/two", "--steps", "2"]
    assert lgf_cli.main(more) == 0
    both = ["eval", "fvd", "tiny/two/without", "tiny/two/with", "--network", str(network(Path("net.pt")))]
    assert lgf_cli.main([*both, "--frames", "9", "--size", "16", "16"]) == 0
    assert re.search(r"FVD \d+\.\d\d   \(2 real and 2 generated", capsys.readouterr().out)


@pytest.mark.slow  # three processes; `test_killed.py` kills at many points, in one that forks
def test_killed_after_seven_steps_the_training_goes_on(commands):
    killed, whole = Path("tiny/run"), Path("tiny/whole")
    run_and_kill("lgf_trainer.runtime.checkpoint", "Checkpoints.save", 7, commands["train"])
    assert not (killed / "pytorch_lora_weights.safetensors").exists()
    assert go_on(commands["train"]) == 7
    assert go_on([*commands["train"], "--run.output", str(whole)]) == 0
    assert losses(killed) == losses(whole)
    for name in ("pytorch_lora_weights.safetensors", "projector.safetensors"):
        one, other = load_file(killed / name), load_file(whole / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_repa_on_dino_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    playground.make_playground(Path("tiny"))
    extract = shlex.split(
        "extract tiny/videos.jsonl --model tiny/model --teacher none --dino --dino-model tiny/dino --output dino"
    )
    assert lgf_cli.main(extract) == 0
    repa = shlex.split("train tiny/recipe.yaml --data.cache dino --alignment.loss repa --alignment.features dino")
    assert lgf_cli.main(repa) == 0
    history = torch.tensor(losses(Path("tiny/run")))
    assert history[-5:, 1].mean() < 0.8 * history[:5, 1].mean()


def test_the_tours_recipe_is_the_papers_but_for_its_size(tmp_path):
    folder = tmp_path / "clips: dogs, #1 {small}"
    playground.make_playground(folder)
    tiny, paper = read_recipe(str(folder / "recipe.yaml")), read_recipe("sam2videox")
    assert tiny.alignment.lgf == paper.alignment.lgf and tiny.alignment.weight == paper.alignment.weight
    assert tiny.training.steps == STEPS and tiny.run.output == folder / "run"
    assert tiny.model.path == str(folder / "model")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "cogvideox" else pytest.mark.slow) for name in FAMILIES]
)
def test_from_a_clip_to_videos_of_text_alone(family, tmp_path, monkeypatch):
    """The README's commands with the other playground, without an image."""
    monkeypatch.chdir(tmp_path)
    words = ["tiny", "--family", family, "--no-image-to-video"]
    assert lgf_cli.run("playground", "lgf_demo.playground", words, "") == 0
    assert "Image" not in json.loads(Path("tiny/model/model_index.json").read_text())["_class_name"]
    commands = {words[0]: [*words, *FAMILIES[family].get(words[0], [])] for words in commands_of("README.md")}
    for option in ("--image", "--fit"):
        at = commands["sample"].index(option)
        del commands["sample"][at : at + 2]
    for name, more in {
        "extract": [],
        "train": ["--training.steps", "2"],
        "sample": ["--steps", "2"],
        "eval": [],
    }.items():
        assert lgf_cli.main([*commands[name], *more]) == 0
    assert Path("tiny/out/with/video.mp4").exists() and list(Path("tiny/motion").glob("*.png"))


def test_the_playgrounds_clip_moves_to_the_right(tmp_path):
    clip = playground.moving_square(frames=29)
    assert clip.shape == (29, 64, 96, 3)
    for t in range(16):
        left = 4 + 2 * t
        assert torch.equal(clip[t, 16:48, left : left + 32], clip[0, 16:48, 4:36])
        assert torch.equal(clip[t, :16], clip[0, :16])
    assert not torch.equal(clip[0], clip[1])


def test_a_video_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match=r"playground: gone\.mp4: no such file"):
        lgf_cli.run("playground", "lgf_demo.playground", [str(tmp_path / "tiny"), "--video", "gone.mp4"], "")
