"""`lgf train` as a user runs it: every recipe, going on after being stopped, what comes out, what is refused."""

import os
import re
import shutil
import signal

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

from accelerate.state import AcceleratorState
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from lgf_cli import main as lgf
from lgf_trainer.commands import parse_recipe
from lgf_trainer.data.cache import WindowCache, changed_by
from lgf_trainer.generators.base import Generator
from lgf_trainer.optimiser import GroupedAdamW
from lgf_trainer.runtime.checkpoint import trained_parameters
from lgf_trainer.runtime.files import claim
from lgf_trainer.runtime.recipe import shipped_recipes
from lgf_trainer.testing import make_tiny_pipeline
from lgf_trainer.train import TrainingRun
from safetensors.torch import load_file
from trainer.run_outputs import LOSSES, losses, metrics, same, weights
from trainer.training_data import SETTINGS, make_cache, random_window, tiny

from lgf_kernels.core import native


def command(place, output, recipe="sam2videox", **changes):
    return ["train", recipe, *tiny(place, run__output=output, **changes)]


@pytest.fixture(scope="module")
def trained(tiny_place, tmp_path_factory):
    """The folder of a finished run, for tests that leave it as it is."""
    output = tmp_path_factory.mktemp("trained")
    assert lgf(command(tiny_place, output)) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return output


#: Local Gram Flow of the tiny cache.
MADE_WITH = {"alignment__lgf__similarity": "cosine", "alignment__lgf__boundary": "exclude"}


def in_latent_time(number, frames):
    """As `lgf extract --time latent` would write a window with features of two teachers."""
    window = random_window(number, frames)
    features = window["features_dino"][::4]
    return window | {"features_dino": features, "features_sam2_image": features[..., :8]}


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_recipe_trains(tiny_place, tmp_path, recipe):
    own = {}
    if recipe == "hunyuan-sam2videox":
        own["model__targets"] = "to_q to_k"  # its own: test_generators.py
    if recipe in ("repa", "align4gen"):
        own["data__cache"] = make_cache(tmp_path / "cache", windows=2, window=in_latent_time).folder
    if recipe == "sam2videox-literal":
        own |= MADE_WITH
    assert lgf(command(tiny_place, tmp_path, recipe, training__steps=2, **own)) == 0
    rows, stage1 = metrics(tmp_path), recipe == "moalign-stage1"
    assert len(rows) == 2 and all(row["l1" if stage1 else "diffusion"] > 0 for row in rows)
    aligned = recipe not in ("lora-only", "moalign-stage1")
    assert stage1 or all(row["alignment"] > 0 for row in rows) == aligned
    assert (tmp_path / "projector.safetensors").exists() == aligned


def test_a_projector_to_the_letter_fits_what_it_is_compared_with(tiny_place, tmp_path):
    """Four times three latents without the first three frames are the teacher's nine; of eight no factor makes as many."""
    assert lgf(command(tiny_place, tmp_path / "whole", "sam2videox-literal", training__steps=1, **MADE_WITH)) == 0

    def shorter(number, frames):
        window = random_window(number, frames)
        return window | {name: window[name][:-1] for name in ("teacher_forward", "teacher_backward")}

    cache = make_cache(tmp_path / "cache", window=shorter).folder
    with pytest.raises(SystemExit, match=r"factor makes 9 frames of 3, and teacher_forward of .* has 8: extract"):
        lgf(command(tiny_place, tmp_path / "other", "sam2videox-literal", data__cache=cache, **MADE_WITH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "lgf.similarity is dot, and the cache was made with cosine.*--similarity dot"),
        ({"alignment__lgf__similarity": "cosine"}, "lgf.boundary is zero, and the cache was made with exclude"),
    ],
)
def test_the_letter_takes_no_other_local_gram_flow(tiny_place, tmp_path, changes, message):
    refused(command(tiny_place, tmp_path / "run", "sam2videox-literal", **changes), message)


def test_losses_go_down(tiny_place, tmp_path):
    lgf(command(tiny_place, tmp_path, training__steps=40, training__batch=1, run__save_every=40))
    history = torch.tensor(losses(tmp_path))
    for column in (0, 1):
        assert history[-20:, column].mean() < 0.75 * history[:10, column].mean(), LOSSES[column]


def test_bfloat16_and_everything_else_switched_on(tiny_place, tmp_path, capsys):
    options = {
        "model__dtype": "bfloat16", "training__precision": "bf16", "training__ema": 0.5, "run__workers": 1, "model__dropout": 0.1,
        "run__tracker": "tensorboard", "data__caption_dropout": 0.5, "alignment__schedule": "0 0.5 2 1", "run__per_process": 2,
        "training__batch": 4, "run__log_every": 2, "run__save_every": 3,
    }  # fmt: skip
    lgf(command(tiny_place, tmp_path / "a", **options))
    rows = metrics(tmp_path / "a")
    assert [row["weight"] for row in rows] == [0.25, 0.375, 0.5]
    assert [row["rate/lora"] for row in rows] == [5e-3, 1e-2, 1e-2]
    assert all(0 < row["share"] < 1 and row["seconds"] > 0 for row in rows)
    assert (
        list((tmp_path / "a").rglob("events.out.tfevents*")) and (tmp_path / "a" / "empty-caption.safetensors").exists()
    )
    assert {weight.dtype for weight in weights(tmp_path / "a").values()} == {torch.float32}
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "a" / "ema"))
    assert f"load_lora_weights('{tmp_path / 'a'}')" in capsys.readouterr().out
    lgf(command(tiny_place, tmp_path / "b", **options))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_text_to_video(tmp_path):
    make_tiny_pipeline(tmp_path / "model", image_to_video=False)
    cache = WindowCache(tmp_path / "cache", SETTINGS | {"image_to_video": False})
    cache.write("k", {name: value for name, value in random_window(0).items() if name != "image"}, {})
    lgf(command(tmp_path, tmp_path / "run"))
    assert len(metrics(tmp_path / "run")) == 3


def test_what_is_saved_reproduces_the_trained_model(tiny_place, trained):
    run = TrainingRun(parse_recipe(command(tiny_place, trained)[1:]))
    run.load()
    ours = run.state.model.transformer.eval()
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tiny_place / "model")
    pipeline.load_lora_weights(trained)
    inputs = {
        "hidden_states": torch.randn(1, 3, 8, 8, 12), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 16, 16), "return_dict": False,
        "image_rotary_emb": pipeline._prepare_rotary_positional_embeddings(64, 96, 3, torch.device("cpu")),
    }  # fmt: skip
    with torch.no_grad():
        expected, actual = ours(**inputs)[0], pipeline.transformer(**inputs)[0]
        pipeline.unload_lora_weights()
        assert torch.equal(actual, expected) and not torch.equal(pipeline.transformer(**inputs)[0], expected)


def test_a_recipe_is_left_that_does_it_again(trained, tmp_path):
    lgf(["train", str(trained / "recipe.yaml"), "--run.output", str(tmp_path)])
    assert losses(tmp_path) == losses(trained) and same(weights(tmp_path), weights(trained))


def test_accumulation_and_larger_forward_passes_are_the_same_training(tiny_place, tmp_path):
    lgf(command(tiny_place, tmp_path / "one", training__batch=4))
    lgf(command(tiny_place, tmp_path / "two", training__batch=4, run__per_process=2))
    torch.testing.assert_close(torch.tensor(losses(tmp_path / "one")), torch.tensor(losses(tmp_path / "two")))


# --- stopped and started again --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_first(tiny_place, trained, tmp_path, monkeypatch, capsys, number):
    arguments = command(tiny_place, tmp_path, run__save_every=100)
    step, handler = GroupedAdamW.step, signal.getsignal(number)

    def interrupted(self, index):
        if index == 1:
            os.kill(os.getpid(), number)
        return step(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(GroupedAdamW, "step", interrupted)
        assert lgf(arguments) == 0
    assert "stopped after 2 of 3 steps. The same command goes on" in capsys.readouterr().out
    assert signal.getsignal(number) == handler
    lgf(arguments)
    assert losses(tmp_path) == losses(trained)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["train", "sam2videox"], "lgf_trainer.commands.parse_recipe"),
        (["extract", "a.mp4", "--output", "cache"], "lgf_trainer.extract.this_process"),
        (["sample", "--model", "m", "--output", "out"], "lgf_trainer.sample._requests"),
        (["eval", "vbench", "results"], "lgf_trainer.evaluation.vbench.read_results"),
    ],
)
def test_stopped_at_any_other_moment_a_command_says_so_in_one_line(words, where, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stopped)
    assert lgf(words) == 130
    assert capsys.readouterr().err.strip() == (
        f"lgf {words[0]}: stopped. What is there is kept: the same command goes on from there"
    )


def test_a_finished_run_is_left_as_it_is(tiny_place, tmp_path, capsys):
    lgf(command(tiny_place, tmp_path))
    before = losses(tmp_path), weights(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").unlink()  # killed while it was copied
    lgf(command(tiny_place, tmp_path))
    assert losses(tmp_path) == before[0] and same(weights(tmp_path), before[1])


def test_curves_go_on_without_a_gap(tiny_place, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = command(tiny_place, tmp_path, training__steps=4, run__tracker="tensorboard")
    publish = TrainingRun._save

    def dies(self):
        publish(self)
        if self.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_save", dies)
        with pytest.raises(KeyboardInterrupt):
            TrainingRun(parse_recipe(arguments[1:])).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    lgf(arguments)
    curves = EventAccumulator(str(tmp_path / "lgf")).Reload()
    assert [point.step for point in curves.Scalars("diffusion")] == [1, 2, 3, 4]


# --- what is refused ------------------------------------------------------------------------------------------


def refused(arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        lgf(arguments)
    assert str(error.value).startswith("lgf train: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training__seed": 1}, "was begun with training.seed = 42, and this is 1. Set run.output to a new folder"),
        ({"alignment__lgf__temperature": 0.2}, "was begun with alignment.lgf.temperature = 0.1, and this is 0.2"),
    ],
)
def test_going_on_with_another_recipe(tiny_place, trained, change, message):
    refused(command(tiny_place, trained, **change), message)


def test_two_runs_in_one_folder(tiny_place, tmp_path):
    other = os.fork()
    if not other:
        try:
            _held = claim(tmp_path)  # until it is killed; it does nothing else
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    assert os.WIFSTOPPED(os.waitpid(other, os.WUNTRACED)[1])
    refused(
        command(tiny_place, tmp_path), f"another run is writing to {re.escape(str(tmp_path))}. Wait until it has ended"
    )
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    assert lgf(command(tiny_place, tmp_path)) == 0


def test_a_worker_that_outlives_its_run_does_not_keep_the_folder(tmp_path):
    """Before filelock 3.32 a forked process kept the lock of the one that had been killed."""
    reader, writer = os.pipe()
    run = os.fork()
    if not run:
        try:
            _held = claim(tmp_path)
            worker = os.fork()
            if worker:
                os.write(writer, worker.to_bytes(4, "little"))
            signal.pause()
        finally:
            os._exit(1)
    worker = int.from_bytes(os.read(reader, 4), "little")
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    try:
        with claim(tmp_path) as lock:
            assert lock.is_locked
        assert not lock.is_locked
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_output_that_is_a_file(tiny_place, tmp_path):
    (tmp_path / "file").write_text("")
    refused(command(tiny_place, tmp_path / "file"), "file cannot be written to .* Name a folder that can")


def test_going_on_with_other_windows(tiny_place, tmp_path):
    make_cache(tmp_path / "cache", windows=2)
    lgf(command(tiny_place, tmp_path / "run", data__cache=tmp_path / "cache"))
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert lgf(command(tiny_place, tmp_path / "run", data__cache=tmp_path / "moved")) == 0
    make_cache(tmp_path / "cache", windows=3)
    refused(command(tiny_place, tmp_path / "run", data__cache=tmp_path / "cache"), "was begun with other windows")


def test_no_cache_and_an_empty_one(tiny_place, tmp_path):
    refused(command(tiny_place, tmp_path / "run", data__cache=tmp_path), "holds no cache .* lgf extract")
    WindowCache(tmp_path / "empty", SETTINGS)
    refused(command(tiny_place, tmp_path / "run", data__cache=tmp_path / "empty"), "has no windows yet")


@pytest.mark.parametrize(
    ("recipe", "missing", "message"),
    [
        (
            "repa-dino",
            "features_dino",
            "have no features_dino, which this recipe's alignment reads; they have features_",
        ),
        ("sam2videox", "teacher_backward", "have no teacher_backward"),
        ("mask-supervision", "masks", "have no masks"),
    ],
)
def test_windows_without_what_the_recipe_reads(tiny_place, tmp_path, recipe, missing, message):
    cache = WindowCache(tmp_path / "cache", SETTINGS)
    cache.write("k", {name: value for name, value in random_window(0).items() if name != missing}, {})
    refused(command(tiny_place, tmp_path / "run", recipe, data__cache=tmp_path / "cache"), message)


def test_a_teacher_on_another_grid(tiny_place, tmp_path):
    cache = WindowCache(tmp_path / "cache", SETTINGS)
    window = random_window(0)
    cache.write("k", window | {"teacher_forward": window["teacher_forward"][:, :3]}, {})
    message = "teacher_forward of .* is on a grid of 3 x 6 tokens, and this model's is 4 x 6"
    refused(command(tiny_place, tmp_path / "run", data__cache=tmp_path / "cache"), message)


@pytest.mark.parametrize(
    ("features", "shape", "message"),
    [
        ("dino", (9, 8, 12, 5), "features_dino of .* is on a grid of 8 x 12 tokens, .* is 4 x 6: average them down"),
        ("dino", (9, 24, 5), r"has the shape \(9, 24, 5\): features are \(frames, rows, columns, channels\)"),
        ("dino videomae", (5, 4, 6, 5), "holds {'features_dino': 5, 'features_videomae': 4} frames, and one projector"),
    ],
)
def test_features_of_the_users_that_cannot_be_compared(tiny_place, tmp_path, features, shape, message):
    cache = WindowCache(tmp_path / "cache", SETTINGS)
    cache.write("k", random_window(0) | {"features_dino": torch.randn(shape)}, {})
    changes = {"alignment__loss": "relation", "alignment__features": features, "data__cache": tmp_path / "cache"}
    refused(command(tiny_place, tmp_path / "run", **changes), message)


def test_another_resolution_for_learned_positions(tiny_place, tmp_path):
    cache = WindowCache(tmp_path / "cache", SETTINGS)
    window = random_window(0)
    cache.write("k", window | {"latents": window["latents"][..., :8]}, {})
    message = "have size 9 frames of 64 x 64 pixels, and the model needs 9 frames of 64 x 96 pixels"
    refused(command(tiny_place, tmp_path / "run", data__cache=tmp_path / "cache"), message)


def test_a_backend_that_cannot_run_is_refused(tiny_place, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "load", lambda device: (None, "it was not built"))
    options = {"alignment__loss": "relation", "alignment__features": "videomae", "alignment__backend": "native"}
    refused(command(tiny_place, tmp_path, **options), "native.* it was not built")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment__block": 3}, "alignment.block is 3, and the model has blocks 0 to 2"),
        ({"run__per_process": 3}, "training.batch = 2 is no multiple of run.per_process = 3"),
        ({"run__shard": "True"}, "run.shard shards over processes, and this is one"),
        ({"model__targets": "to_z"}, r"model.targets fit no layer of this model \(Target modules"),
        ({"model__targets": r"blocks\.\d+\.to_z"}, r"model.targets fit no layer of this model \(Target modules"),
        ({"model__targets": "blocks(.*"}, r"model\.targets is no regular expression \(missing \), unterminated"),
        ({"model__targets": "to_k blocks.*to_q"}, "model.targets must be ends of names or one regular expression"),
        (
            {"model__path": "/nowhere/at/all"},
            "/nowhere/at/all: no such folder. Give a pipeline's folder, or a name on the hub",
        ),
        ({"training__steps": 0}, "training.steps must be at least 1, got 0"),
    ],
)
def test_recipes_that_cannot_run(tiny_place, tmp_path, changes, message):
    refused(command(tiny_place, tmp_path, **changes), message)


def test_targets_that_are_no_layers_are_refused_before_weights_are_read(tiny_place, tmp_path, monkeypatch):
    monkeypatch.setattr(Generator, "load_transformer", lambda *_: pytest.fail("minutes would have been lost"))
    refused(command(tiny_place, tmp_path, model__targets="to_z"), r"model.targets fit no layer of this model \(Target")


def test_no_recipe(capsys):
    refused(["train", "gone.yaml"], "there is no recipe gone.yaml: give a YAML file, or one of")
    refused(["train"], "name a recipe first")


def test_wandb_must_be_there(tiny_place, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(command(tiny_place, tmp_path, run__tracker="wandb"), "pip install wandb")


def test_a_full_disk_keeps_the_checkpoint_before(tiny_place, trained, tmp_path, monkeypatch):
    arguments = command(tiny_place, tmp_path)
    from lgf_trainer.runtime import checkpoint

    save, calls = checkpoint.write_tensors, []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:  # one file for each checkpoint, beside the weights
            raise OSError(28, "No space left on device")
        return save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        refused(arguments, "checkpoint of step 2 cannot be written to .*: the disk is full")
    lgf(arguments)
    assert losses(tmp_path) == losses(trained)


def test_a_disk_that_is_full_in_the_end(tiny_place, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        refused(command(tiny_place, tmp_path), "the disk is full. Make room and run again: it goes on from there")
    lgf(command(tiny_place, tmp_path))
    assert (tmp_path / "pytorch_lora_weights.safetensors").exists()


def test_the_way_out_of_nan_is_one(tiny_place, trained, tmp_path):
    """What is proposed must not be refused afterwards."""
    proposed = {"optimisers__lora__rate": 1e-5, "optimisers__projector__rate": 1e-5, "alignment__schedule": "0 0 500 1"}
    refused(command(tiny_place, trained, **proposed), "Set run.output to a new folder")
    assert lgf(command(tiny_place, tmp_path, **proposed)) == 0


def test_nan_stops_the_run_and_is_never_saved(tiny_place, tmp_path):
    cache = make_cache(tmp_path / "cache", windows=2)
    for key in cache.keys():
        window = cache.read(key)
        window.tensors["teacher_forward"][:] = float("nan")
        cache.write(key, window.tensors, window.about)
    refused(
        command(tiny_place, tmp_path / "run", data__cache=tmp_path / "cache"),
        r"step 1: the alignment loss is nan. Train into a new --run.output with lower rates \(--optimisers.lora.rate, "
        r"--optimisers.projector.rate\), or a warm-up of the alignment \(--alignment.schedule 0 0 500 1\), or in float32",
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_half_precision_without_autocast(tiny_place, tmp_path):
    arguments = command(tiny_place, tmp_path, model__dtype="bfloat16", training__precision="no")
    refused(arguments, "model.dtype bfloat16 needs training.precision bf16; without it, set float32")
    assert lgf(command(tiny_place, tmp_path, model__dtype="bfloat16", model__train="full")) == 0


def test_a_damaged_window(tiny_place, tmp_path):
    cache = make_cache(tmp_path / "cache", windows=2)
    path = cache.path(cache.keys()[1])
    path.write_bytes(path.read_bytes()[:-5])
    arguments = command(tiny_place, tmp_path / "run", data__cache=tmp_path / "cache", run__workers=1)
    refused(arguments, f"{re.escape(str(path))} cannot be read .* Remove it and run lgf extract again")


# --- all weights, and one run after another -------------------------------------------------------------------


def test_all_weights_are_trained_saved_and_gone_on_with(tiny_place, trained, tmp_path):
    changes = {
        "model__train": "full",
        "optimisers__full__rate": 1e-3,
        "optimisers__full__warmup": 1,
        "training__ema": 0.5,
    }
    assert lgf(command(tiny_place, tmp_path / "run", **changes)) == 0
    base = load_file(tiny_place / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    result = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "run" / "transformer").state_dict()
    assert base.keys() == result.keys() and not all(torch.equal(base[name], result[name]) for name in base)
    assert {"rate/full", "rate/projector"} < metrics(tmp_path / "run")[0].keys()
    assert not (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()
    again = command(tiny_place, tmp_path / "again", run__save_every=100, **changes)
    with pytest.MonkeyPatch.context() as patch:
        step = GroupedAdamW.step
        patch.setattr(
            GroupedAdamW, "step", lambda *a: (a[1] == 1 and os.kill(os.getpid(), signal.SIGTERM), step(*a))[1]
        )
        assert lgf(again) == 0
    assert lgf(again) == 0 and losses(tmp_path / "again") == losses(tmp_path / "run")


def test_full_training_that_cannot_fit_is_refused_before_anything_is_loaded(tiny_place, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 256)  # 64 KiB of memory
    monkeypatch.setattr("lgf_trainer.generators.base.Generator.load_transformer", None)
    message = r"model\.train full needs 0\.0 GiB in every process, for 0\.00 billion weights, .* has 0\.0\. Shard it"
    refused(command(tiny_place, tmp_path, model__train="full"), message)


def test_a_stage_after_a_stage(tiny_place, trained, tmp_path, monkeypatch):
    """The second begins with the weights of the first, its result or its last checkpoint, and goes on from its own."""
    seen, update = [], TrainingRun._make_steps

    def noted(self):
        seen.append({name: p.detach().clone() for name, p in trained_parameters(self.state.model).items()})
        update(self)

    monkeypatch.setattr(TrainingRun, "_make_steps", noted)
    changes = {"alignment__weight": 0.1, "start_from": trained}
    lgf(command(tiny_place, tmp_path / "next", **changes))
    lgf(command(tiny_place, tmp_path / "next", training__steps=3, **changes))
    shutil.copytree(trained / "checkpoints", tmp_path / "stopped" / "checkpoints")
    lgf(command(tiny_place, tmp_path / "other", start_from=tmp_path / "stopped"))
    before = load_file(trained / "projector.safetensors")
    for first in (seen[0], seen[2]):
        assert all(torch.equal(first[f"projector.{name}"], value) for name, value in before.items())
        assert any(value.any() for name, value in first.items() if "lora_B" in name)
    assert not same(weights(tmp_path / "next"), weights(trained))
    assert not same({k: v for k, v in seen[1].items()}, seen[0]), "what goes on does not start again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__rank": 2},
            r"lora_A\.weight has the shape \(4, 32\) in pytorch_lora.*, and this recipe's has \(2, 32\)",
        ),
        ({"model__targets": "to_k ff.net.0.proj"}, r"net\.0\.proj\.lora_A\.weight is not in pytorch_lora_weights"),
        (
            {"projector__widths": "16 8 4"},
            r"mlp\.6\.weight has the shape .* in projector\.safetensors.* Set the recipe",
        ),
        (
            {"model__train": "full"},
            r"it has no transformer/diffusion_pytorch_model\.safetensors, nor a checkpoint with one",
        ),
        ({"start_from": "gone"}, "it has no pytorch_lora_weights.safetensors, nor a checkpoint with one"),
    ],
)
def test_starting_from_a_run_of_another_shape(tiny_place, trained, tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr("lgf_trainer.generators.base.Generator.load_transformer", None)  # nothing is loaded
    refused(command(tiny_place, tmp_path / "run", **({"start_from": trained} | changes)), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alignment__features": "dino videomae", "alignment__loss": "repa"},
            r"holds {.*'features_videomae': \(9, 2, 3\)}, and .*concat joins features on one grid",
        ),
        ({"alignment__loss": "lgf"}, "combine is concat, and logits cannot be concatenated"),
    ],
)
def test_concatenation_of_what_lies_on_different_grids(tiny_place, tmp_path, changes, message):
    cache = WindowCache(tmp_path / "cache", SETTINGS)
    cache.write("k", random_window(0) | {"features_videomae": torch.randn(9, 2, 3, 10)}, {})
    changes = {"alignment__combine": "concat", "data__cache": tmp_path / "cache"} | changes
    refused(command(tiny_place, tmp_path / "run", **changes), message)


def test_several_teachers_weighted_and_concatenated(tiny_place, tmp_path):
    names = {"alignment__loss": "repa", "alignment__features": "sam2_forward sam2_backward dino"}
    refused(command(tiny_place, tmp_path, **names), r"weighs one or two names, got 3 .* alignment\.combine to concat")
    refused(command(tiny_place, tmp_path, alignment__weights="1 2", **names), "a number for each of 3 features, got 2")
    lgf(command(tiny_place, tmp_path / "joined", alignment__combine="concat", **names))
    last = load_file(tmp_path / "joined" / "projector.safetensors")
    assert [tensor.shape[0] for name, tensor in last.items() if name == "mlp.6.weight"] == [8 + 8 + 12]


def test_windows_of_changed_videos_are_trained_on_where_the_recipe_says_so(tiny_place, tmp_path):
    cache = WindowCache(make_cache(tmp_path / "cache", windows=2).folder)
    wish = [*command(tiny_place, tmp_path / "run", data__cache=cache.folder), "--data.transforms", "speed"]
    refused(
        wish, r"data.transforms names speed, and .* has no such windows: run lgf extract again, with --transforms speed"
    )
    for key in cache.keys():
        tensors, about = cache.read(key)
        cache.write(changed_by(key, "speed"), tensors, about)
    assert len(cache.keys()) == 2
    assert lgf(wish) == 0


def test_options_of_another_loss_are_named_when_the_run_begins(tiny_place, tmp_path, capsys):
    changes = {"alignment__relation__form": "moalign", "training__steps": 1}
    assert lgf(command(tiny_place, tmp_path, **changes)) == 0
    assert "alignment.relation.form: not read, as alignment.loss is lgf\n" in capsys.readouterr().out


def test_a_loss_that_is_not_there(tiny_place, tmp_path):
    refused(
        command(tiny_place, tmp_path, alignment__loss="lfg"),
        "there is no objective 'lfg'. There are: .*features, lgf, mask",
    )
