"""Checkpoints are whole or not there, the newest whole one is found, and a full disk costs nothing that was there."""

import errno
import hashlib
import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from lgf_trainer import AlignedTransformer, Projector
from lgf_trainer.generators.base import Generator
from lgf_trainer.optimiser import GroupedAdamW, MovingAverage
from lgf_trainer.runtime import checkpoint, recipe
from lgf_trainer.runtime.checkpoint import (
    Checkpoints,
    TrainingState,
    publish,
    trained_parameters,
)
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.runtime.files import TYPES, write_tensors
from lgf_trainer.runtime.recipe import Optimiser
from lgf_trainer.tasks.diffusion import load_weights, save_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lgf_kernels.core.files import whole_file


def file(content):
    def write(folder):
        with whole_file(folder / "a.safetensors") as out:
            out.write(content)
        return {"a.safetensors": hashlib.sha256(content).hexdigest()}

    return write


def content(found):
    return (found.folder / "a.safetensors").read_bytes()


def test_the_newest_is_found_and_old_ones_go(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.latest() is None
    for step in (9, 10, 11):
        checkpoints.save(step, file(b"%d" % step), {"recipe": {"a": 1}})
    found = Checkpoints(tmp_path / "new", keep=2).latest()
    assert (found.step, content(found), found.facts["recipe"]) == (11, b"11", {"a": 1})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize(
    "damage", ["flip", "shorten", "remove", "no facts", "facts cut", "facts empty", "facts of others"]
)
def test_a_damaged_one_is_passed_over(tmp_path, damage, capsys):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, file(b"%d abc" % step), {})
    place = tmp_path / "step-00000002"
    target = place / ("checkpoint.json" if "facts" in damage else "a.safetensors")
    if damage in ("remove", "no facts"):
        target.unlink()
    else:
        facts = {"facts cut": b'{"step": 2', "facts empty": b"{}", "facts of others": b"[2]"}
        target.write_bytes(({"flip": b"2 abd", "shorten": b"2 ab"} | facts)[damage])
    assert checkpoints.latest().step == 1
    assert "step-00000002 is damaged" in capsys.readouterr().out
    checkpoints.save(2, file(b"again"), {})
    assert content(checkpoints.latest()) == b"again"


def test_one_that_cannot_be_read_just_now_is_kept(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, file(b"%d" % step), {})

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "file_hash", denied)
        with pytest.raises(TrainerError, match=r"step-00000002 cannot be read \(Permission denied\)"):
            checkpoints.latest()
    assert checkpoints.latest().step == 2


def test_a_checkpoint_is_on_the_disk_under_its_name(tmp_path, monkeypatch):
    """Its files before the folder gets its name, and the name afterwards: a power cut loses neither."""
    synced, fsync = [], os.fsync

    def noted(handle):
        name = Path(f"/proc/self/fd/{handle}").resolve().name
        synced.append((re.sub(r"^\.(.*)\.[0-9a-f]{32}$", r"\1", name), (tmp_path / "step-00000001").exists()))
        fsync(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", noted)
    Checkpoints(tmp_path, keep=1).save(1, file(b"1"), {})
    assert synced == [("a.safetensors", False), ("checkpoint.json", False), (tmp_path.name, True)]


def test_folders_of_the_user_are_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for name in ("step-00000001-good", "step-notes"):
        (tmp_path / name).mkdir()
    checkpoints.save(1, file(b"1"), {})
    checkpoints.save(2, file(b"2"), {})
    assert checkpoints.latest().step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001-good", "step-00000002", "step-notes"]


def test_half_written_ones_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)

    class Killed(BaseException):
        pass

    def dies(folder):
        (folder / "a.safetensors").write_bytes(b"half")
        raise Killed

    checkpoints.save(1, file(b"1"), {})
    with pytest.raises(Killed):
        checkpoints.save(2, dies, {})
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoints.latest().step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["OSError", "SafetensorError"])
def test_a_full_disk(tmp_path, error):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, file(b"1"), {})

    def fails(folder):
        (folder / "a.safetensors").write_bytes(b"half")
        raise error

    message = "checkpoint of step 2 cannot be written to .*: the disk is full. Mend that and run again"
    with pytest.raises(TrainerError, match=message):
        checkpoints.save(2, fails, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] and content(checkpoints.latest()) == b"1"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=r"step 1 cannot be written to .*file/c: .*Not a directory"):
        Checkpoints(tmp_path / "file" / "c", keep=1).save(1, file(b"1"), {})


def generator_of(place):
    return Generator.read(str(place / "model"))


def make_model(place, projector=True, **options):
    torch.manual_seed(0)
    model = recipe.Model(**({"path": str(place / "model"), "dtype": "float32", "rank": 4, "alpha": 2} | options))
    transformer = generator_of(place).load_transformer(model)
    head = Projector(32, hidden=16, widths=(16, 8), groups=4) if projector else None
    return AlignedTransformer(transformer, head, 1)


def shaken(model):
    for parameter in trained_parameters(model).values():
        nn.init.normal_(parameter)
    return model


def inputs():
    rng = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 3, 8, 8, 12, generator=rng), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 16, 16, generator=rng),
    }  # fmt: skip


@torch.no_grad()
def predict(transformer):
    return transformer.eval()(**inputs(), image_rotary_emb=None, return_dict=False)[0]


@pytest.mark.parametrize("alpha", [2, 4, 7])
def test_diffusers_loads_exactly_what_was_trained(tiny_place, tmp_path, alpha):
    model = shaken(make_model(tiny_place, alpha=alpha))
    base = CogVideoXImageToVideoPipeline.from_pretrained(tiny_place / "model")
    before = predict(base.transformer)
    save_weights(
        tmp_path, generator_of(tiny_place), model, {name: p.detach() for name, p in trained_parameters(model).items()}
    )
    base.load_lora_weights(tmp_path)
    trained = predict(model.transformer)
    assert torch.equal(predict(base.transformer), trained) and not torch.equal(before, trained)


def test_a_regular_expression_chooses_the_layers_and_diffusers_loads_them(tiny_place, tmp_path):
    """As HunyuanVideo needs it: ends of names would hit its token refiner, too."""
    pattern = r"transformer_blocks\.(0|2)\.attn1\.(to_q|to_out\.0)"
    model = shaken(make_model(tiny_place, targets=(pattern,), alpha=7))
    changed = [name for name, _ in model.transformer.named_modules() if name.endswith("lora_A.default")]
    layers = [f"transformer_blocks.{k}.attn1.{layer}.lora_A.default" for k in (0, 2) for layer in ("to_q", "to_out.0")]
    assert sorted(changed) == sorted(layers)
    save_weights(tmp_path, generator_of(tiny_place), model, trained_parameters(model))
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as content:
        metadata = json.loads(content.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.target_modules"] == pattern and metadata["transformer.lora_alpha"] == 7
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tiny_place / "model")
    before = predict(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(predict(pipeline.transformer), predict(model.transformer))
    assert not torch.equal(predict(pipeline.transformer), before)


@pytest.mark.parametrize("projector", [True, False])
def test_weights_come_back(tiny_place, tmp_path, projector):
    model, other = shaken(make_model(tiny_place, projector)), make_model(tiny_place, projector)
    save_weights(
        tmp_path, generator_of(tiny_place), model, {name: p.detach() for name, p in trained_parameters(model).items()}
    )
    assert (tmp_path / "projector.safetensors").exists() == projector
    load_weights(tmp_path, generator_of(tiny_place), other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_of_a_larger_model_are_refused(tiny_place, tmp_path):
    """Where the model in its folder has been replaced since."""
    model = make_model(tiny_place)
    save_weights(
        tmp_path, generator_of(tiny_place), model, {name: p.detach() for name, p in trained_parameters(model).items()}
    )
    del model.transformer.transformer_blocks[2]
    with pytest.raises(TrainerError, match=r"a LoRA for another model: it has transformer_blocks\.2"):
        load_weights(tmp_path, generator_of(tiny_place), model)


def save_weights_of(generator, folder, model, weights):
    return save_weights(folder, generator, model, weights)


def make_state(place, ema):
    model = make_model(place)
    groups = {"all": (trained_parameters(model).values(), Optimiser(rate=1e-2, warmup=0))}
    average = MovingAverage(trained_parameters(model), 0.5) if ema else None
    save = partial(save_weights_of, generator_of(place))
    return TrainingState(save, model, GroupedAdamW(groups, steps=10, clip=1.0), average)


def advance(state, step):
    rng = torch.Generator().manual_seed(step)
    for parameter in trained_parameters(state.model).values():
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    state.optimiser.step(step)
    if state.average:
        state.average.update()


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_that_comes_back_goes_on_alike(tiny_place, tmp_path, ema):
    state, other = make_state(tiny_place, ema), make_state(tiny_place, ema)
    for step in range(3):
        advance(state, step)
    place = Checkpoints(tmp_path, 1).save(3, state.write(main=True), {})
    load_weights(place, generator_of(tiny_place), other.model)
    other.read(place)
    for one in (state, other):
        advance(one, 3)
    ours, theirs = (trained_parameters(one.model) for one in (state, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if ema:
        assert all(torch.equal(state.average.average[name], other.average.average[name]) for name in ours)
        assert (place / "ema" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_hashes_are_those_of_the_files(tiny_place, tmp_path, train):
    """They are computed while writing, and nothing is read again."""
    model = shaken(make_model(tiny_place, train=train))
    hashes = save_weights(tmp_path, generator_of(tiny_place), model, trained_parameters(model))
    found = {p.relative_to(tmp_path).as_posix(): checkpoint.file_hash(p) for p in tmp_path.rglob("*") if p.is_file()}
    assert hashes == found and len(found) == (2 if train == "lora" else 3)


def test_all_weights_come_back_and_diffusers_loads_them(tiny_place, tmp_path):
    model, other = shaken(make_model(tiny_place, train="full")), make_model(tiny_place, train="full")
    assert len(trained_parameters(model)) == len(list(model.parameters()))
    save_weights(tmp_path, generator_of(tiny_place), model, trained_parameters(model))
    load_weights(tmp_path, generator_of(tiny_place), other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    loaded = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert all(torch.equal(p, dict(model.transformer.named_parameters())[n]) for n, p in loaded.named_parameters())
    # Loaders leave weights in a mapped file, and the last bits of sums depend on where.
    torch.testing.assert_close(predict(loaded), predict(model.transformer), rtol=1e-4, atol=1e-2)


def test_a_file_of_tensors_is_what_safetensors_reads(tmp_path):
    """Of all types, of no elements, and not contiguous; with the hash of what is on the disk."""
    tensors = {str(kind): torch.arange(6).view(2, 3).to(kind) for kind in TYPES}
    tensors |= {"none": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "turned": torch.arange(6.0).view(2, 3).T}
    sha = write_tensors(tmp_path / "a.safetensors", tensors, {"about": "ü"})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert all(read[name].dtype == tensors[name].dtype for name in tensors)
    assert sha == checkpoint.file_hash(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "about": "ü"}


def test_publishing_copies_the_weights_alone(tiny_place, tmp_path):
    state = make_state(tiny_place, ema=True)
    advance(state, 0)
    place = Checkpoints(tmp_path / "c", 1).save(1, state.write(main=True), {})
    publish(place, tmp_path / "out")
    weights = ["pytorch_lora_weights.safetensors", "projector.safetensors"]
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == sorted([*weights, *(f"ema/{name}" for name in weights)])
    assert json.loads((place / "checkpoint.json").read_text())["sha256"].keys() == {*found, "optimizer.safetensors"}


def test_frozen_weights_are_not_gathered_for_a_save(monkeypatch):
    """They are gigabytes beside a LoRA."""
    model = torch.nn.ModuleDict({"frozen": torch.nn.Linear(2, 2), "trained": torch.nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    gathered, real = [], checkpoint.get_model_state_dict
    monkeypatch.setattr(
        checkpoint, "get_model_state_dict", lambda *a, **o: gathered.append(real(*a, **o)) or gathered[0]
    )
    optimiser = GroupedAdamW({"all": (model["trained"].parameters(), Optimiser(rate=1.0, warmup=0))}, steps=1, clip=1.0)
    TrainingState(None, model, optimiser).write(main=True)
    assert set(gathered[0]) == {"trained.weight", "trained.bias"}
