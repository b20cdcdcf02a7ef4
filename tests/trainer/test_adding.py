"""A video model, a teacher, a loss and a task of one's own: each is one file, in a folder that the trainer knows nothing of."""

import importlib
import json
import signal
import sys
import textwrap

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel
from lgf_cli import main as lgf
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.generators.base import Generator
from lgf_trainer.objectives.base import Objective
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.tasks.base import Task
from lgf_trainer.teachers.base import Teacher
from safetensors.torch import load_file
from support.clips import write_clip
from trainer.kill_points import attempt
from trainer.run_outputs import losses, metrics, same
from trainer.training_data import SETTINGS, extraction, random_window, tiny

GENERATOR = """
    import torch
    from lgf_trainer.generators.base import Generator, Inputs, posterior_sample


    class MadeUp(Generator):
        name = "made-up"
        pipelines = ("MochiPipeline",)
        transformer = "LTXVideoTransformer3DModel"
        frames, height, width, temporal, spatial = 9, 64, 96, 4, 16
        image_to_video = False
        shift = 2.0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.patch, self.layers = (1, 2, 2), self.config["num_layers"]
            self.text = (16, self.config["caption_channels"])
            self.channels = self.config["num_attention_heads"] * self.config["attention_head_dim"]

        def grid_of(self, hidden, conditions):
            return tuple(conditions[name] for name in ("num_frames", "height", "width"))

        def blocks(self, transformer):
            return transformer.transformer_blocks

        def check_window(self, shapes, cache):
            assert shapes["latents"][0] * 2 == self.config["in_channels"]

        def latents(self, moments, rng):
            return posterior_sample(moments, rng)

        def timestep(self, rng):
            return 1000 * torch.rand((), generator=rng)

        def inputs(self, sample, dtype):
            x, noise = self.tokens(sample["latents"]), self.tokens(sample["noise"])
            sigma = (sample["timestep"] / 1000).view(-1, 1, 1)
            frames, rows, columns = self.grid_of_moments(sample["latents"].shape[1:])
            conditions = {
                "timestep": sample["timestep"], "encoder_hidden_states": sample["text"].to(dtype),
                "encoder_attention_mask": torch.ones(sample["text"].shape[:2]),
                "num_frames": frames, "height": rows, "width": columns,
            }
            return Inputs((1 - sigma) * x + sigma * noise, noise - x, conditions)

        def tokens(self, latents):
            B, C, F, h, w = latents.shape
            cells = latents.view(B, C, F, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
            return cells.reshape(B, F * h * w // 4, 4 * C)
"""

TEACHER = """
    from dataclasses import dataclass
    import torch
    from torch.nn.functional import adaptive_avg_pool2d
    from lgf_trainer.teachers.base import Teacher


    @dataclass(frozen=True)
    class Options:
        gain: float = 1.0


    class Colours(Teacher):
        name, Options = "colours", Options

        def __init__(self, options, device):
            self.gain = options.gain

        def __call__(self, video, subject, student):
            pooled = adaptive_avg_pool2d(video[list(student.frames)], student.grid)
            return {"features_colours": self.gain * pooled.permute(0, 2, 3, 1).contiguous()}
"""

OBJECTIVE = """
    from dataclasses import dataclass
    from lgf_trainer.objectives.base import Objective


    @dataclass(frozen=True)
    class Options:
        power: int = 2


    class Powers(Objective):
        name, Options = "powers", Options

        def channels(self, shapes):
            return shapes[self.tensors[0]][-1]

        def __call__(self, projected, targets):
            return (projected.float() - targets[self.tensors[0]].float()).abs().pow(self.options.power).mean()
"""

TASK = """
    from dataclasses import dataclass
    from torch import nn
    from lgf_trainer.data.samples import WindowTensors
    from lgf_trainer.runtime.errors import TrainerError
    from lgf_trainer.tasks.base import Task


    @dataclass(frozen=True)
    class Options:
        features: str = "features_dino"
        width: int = 4


    class Compression(Task):
        name, Options, losses_named = "compression", Options, ("squared", "absolute")

        def __init__(self, *arguments):
            super().__init__(*arguments)
            if self.options.features not in self.shapes:
                raise TrainerError(f"the windows of {self.cache.folder} have no {self.options.features}")

        def make_model(self):
            channels, width = self.shapes[self.options.features][-1], self.options.width
            return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, channels))

        def groups(self, model):
            return {"all": (list(model.parameters()), self.recipe.optimisers.projector)}

        def samples(self):
            return WindowTensors(self.cache, self.cache.keys(), (self.options.features,), self.recipe.training.seed)

        def losses(self, batch, trained):
            error = self.model(batch[self.options.features]) - batch[self.options.features]
            return error.square().mean(), error.detach().abs().mean()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(kind, code)`: a package in a temporary folder that declares its class, as pip would leave it."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    kinds = {"generators": Generator, "teachers": Teacher, "objectives": Objective, "tasks": Task}
    for kind in kinds.values():
        monkeypatch.setattr(kind, "known", dict(kind.all()))

    def write(kind, code):
        (site / f"own_{kind}-1.0.dist-info").mkdir(parents=True)
        (site / f"own_{kind}.py").write_text(textwrap.dedent(code))
        (site / f"own_{kind}-1.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: own-{kind}\nVersion: 1.0\n"
        )
        entry = f"[lgf_trainer.{kind}]\nown = own_{kind}\n"
        (site / f"own_{kind}-1.0.dist-info" / "entry_points.txt").write_text(entry)
        importlib.invalidate_caches()  # an import since then may have found no such folder

    yield write
    for kind in kinds:
        sys.modules.pop(f"own_{kind}", None)


@pytest.fixture
def model(tmp_path):
    """A pipeline of a family that is not there, with a transformer that takes packed tokens."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=2,
        caption_channels=16,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    index = {"_class_name": "MochiPipeline", "vae": ["diffusers", AutoencoderKLLTXVideo.__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_generator_in_a_folder_of_its_own_trains_and_diffusers_loads_it(install, model, tmp_path):
    assert len(textwrap.dedent(GENERATOR).strip().splitlines()) <= 60
    cache = WindowCache(tmp_path / "cache", SETTINGS)
    for number in range(4):
        cache.write(f"w{number}", {k: v for k, v in random_window(number).items() if k != "image"}, {})
    words = ["train", "sam2videox", *tiny(tmp_path, training__steps=3, model__targets="to_k to_q")]
    with pytest.raises(
        SystemExit, match=r"is a MochiPipeline, and the families that are here are cogvideox .*; wan \("
    ):
        lgf(words)
    install("generators", GENERATOR)
    assert lgf(words) == 0
    assert len(metrics(tmp_path / "run")) == 3 and torch.tensor(losses(tmp_path / "run")).isfinite().all()
    transformer = LTXVideoTransformer3DModel.from_pretrained(model / "transformer")
    parts = dict.fromkeys(["scheduler", "vae", "text_encoder", "tokenizer"])
    pipeline = LTXPipeline(transformer=transformer, **parts)
    pipeline.load_lora_weights(tmp_path / "run")
    trained = [p for name, p in transformer.named_parameters() if "lora_B" in name]
    assert len(trained) == 2 * 2 * 2 and any(p.any() for p in trained)


def test_a_teacher_and_a_loss_of_ones_own(install, tiny_place, tmp_path):
    """From one command to the next, each with options that are checked."""
    write_clip(tmp_path / "dog.mp4", frames=14)
    options = ["--stride", 5, "--teachers", "colours", "--time", "latent", "--teacher-options"]
    extract = extraction(tmp_path / "dog.mp4", tmp_path / "cache", tiny_place / "model", *options)
    with pytest.raises(SystemExit, match=r"there is no teacher 'colours'\. There are: dino, .*sam2, .*videomae"):
        lgf([*extract, "colours.gain=2"])
    install("teachers", TEACHER)
    for options, message in {
        "colours.gian=2": "there is no key gian. The nearest one is gain",
        "colours.gain=loud": "--teachers colours: gain must be a number, got 'loud'",
        "colour.gain=2": "expected NAME.FIELD=VALUE with one of colours",
    }.items():
        with pytest.raises(SystemExit, match=message):
            lgf([*extract, options])
    assert lgf([*extract, "colours.gain=2"]) == 0
    cache = WindowCache(tmp_path / "cache")
    assert cache.settings["teachers"] == {"colours": {"gain": 2.0}} and cache.settings["teacher"] == "none"
    assert cache.read(cache.keys()[0]).tensors["features_colours"].shape == (3, 4, 6, 3)

    changes = {"alignment__loss": "powers", "alignment__features": "colours", "data__cache": tmp_path / "cache"}
    train = ["train", "sam2videox", *tiny(tiny_place, run__output=tmp_path / "run", **changes), "--alignment.options"]
    with pytest.raises(SystemExit, match=r"there is no objective 'powers'\. There are: .*features, lgf, mask"):
        lgf([*train, "{}"])
    install("objectives", OBJECTIVE)
    with pytest.raises(SystemExit, match=r"alignment\.options: there is no key pover\. The nearest one is power"):
        lgf([*train, "{pover: 3}"])
    with pytest.raises(SystemExit, match=r"alignment\.options: power must be a whole number, got 1\.5"):
        lgf([*train, "{power: 1.5}"])
    assert lgf([*train, "{power: 3}"]) == 0
    assert (tmp_path / "run" / "recipe.yaml").read_text().count("power: 3") == 1
    assert all(row["alignment"] > 0 for row in metrics(tmp_path / "run"))


BROKEN = {
    "a name that is there": (TEACHER.replace("features_colours", "latents"), "colours makes latents, which is there"),
    "an import that fails": ("import nothing_such", "own_teachers, a module of own-teachers, cannot be imported"),
}


@pytest.mark.parametrize(("code", "message"), BROKEN.values(), ids=BROKEN)
def test_a_teacher_of_ones_own_with_a_mistake(install, tiny_place, tmp_path, code, message):
    write_clip(tmp_path / "dog.mp4", frames=9)
    install("teachers", code)
    with pytest.raises(SystemExit, match=message):
        lgf(extraction(tmp_path / "dog.mp4", tmp_path / "cache", tiny_place / "model", "--teachers", "colours"))


def test_a_teacher_of_ones_own_without_options(install, tiny_place, tmp_path):
    write_clip(tmp_path / "dog.mp4", frames=9)
    install(
        "teachers",
        TEACHER.replace('name, Options = "colours", Options', 'name = "colours"').replace("options.gain", "2"),
    )
    assert lgf(extraction(tmp_path / "dog.mp4", tmp_path / "cache", tiny_place / "model", "--teachers", "colours")) == 0


def test_a_task_of_ones_own_trains_is_killed_and_goes_on(install, tiny_place, tmp_path):
    """Without a video model; its weights, metrics, options, checkpoints and `start_from` are those of any run."""

    def words(output, options="{}", **changes):
        changes = {"model__path": "/nowhere", "training__steps": 4, "optimisers__projector__rate": 0.1} | changes
        changed = tiny(tiny_place, run__output=tmp_path / output, **changes)
        return ["train", "sam2videox", *changed, "--task", "compression", "--task-options", options]

    with pytest.raises(SystemExit, match=r"there is no task 'compression'\. There are: diffusion, motion-subspace"):
        lgf(words("whole"))
    install("tasks", TASK)
    assert len(textwrap.dedent(TASK).strip().splitlines()) <= 45
    for options, message in {
        "{widht: 3}": r"task_options: there is no key widht\. The nearest one is width",
        "{features: features_gone}": "have no features_gone",
    }.items():
        with pytest.raises(SystemExit, match=message):
            lgf(words("whole", options))
    assert lgf(words("whole")) == 0
    rows = metrics(tmp_path / "whole")
    assert set(rows[0]) == {"step", "squared", "absolute", "gradient", "rate/all", "seconds", "share"}
    assert rows[3]["squared"] < rows[0]["squared"]

    assert attempt(words("killed"), "after the second checkpoint") == {"ended": -signal.SIGKILL, "steps": 2}
    assert len(metrics(tmp_path / "killed")) == 2
    assert lgf(words("killed")) == 0
    trained = [load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed")]
    assert same(*trained) and trained[0]["0.weight"].shape == (4, 12)
    history = [[[row[name] for name in ("squared", "absolute", "gradient")] for row in metrics(tmp_path / name)]
               for name in ("whole", "killed")]  # fmt: skip
    assert history[0] == history[1] and len(history[0]) == 4

    assert lgf(words("next", start_from=tmp_path / "whole")) == 0
    assert metrics(tmp_path / "next")[0]["squared"] < rows[0]["squared"]
    with pytest.raises(
        SystemExit, match=r"0\.weight has the shape \(4, 12\) in weights.*, and this recipe's has \(2, 12\)"
    ):
        lgf(words("other", "{width: 2}", start_from=tmp_path / "whole"))


def test_a_class_that_is_imported_is_known(monkeypatch):
    monkeypatch.setattr(Teacher, "known", dict(Teacher.all()))

    class Mine(Teacher):
        name = "mine"

    assert Teacher.find("mine") is Mine
    with pytest.raises(TrainerError, match=r"there is no teacher 'yours'\. There are: dino, .*mine, .*videomae"):
        Teacher.find("yours")
