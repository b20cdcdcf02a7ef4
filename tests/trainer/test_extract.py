"""lgf extract: what is stored is what the models say, however it is interrupted, divided or fed."""

import errno
import functools
import json
import os
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("tyro")

from diffusers import CogVideoXImageToVideoPipeline
from lgf_cli import main as lgf_command
from lgf_trainer import commands, extract
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.data.samples import mix
from lgf_trainer.data.sources import list_clips
from lgf_trainer.data.subject import Detector, not_black, suppressed
from lgf_trainer.data.timeline import Timeline
from lgf_trainer.data.transforms import TRANSFORMS
from lgf_trainer.data.video import Fit, Video, VideoError, read_window, to_signed
from lgf_trainer.generators import cogvideox
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.dino import Dino
from lgf_trainer.teachers.sam2 import TransformersSam2
from lgf_trainer.testing import (
    DINO_CHANNELS,
    FRAMES,
    HEIGHT,
    TEACHER_CHANNELS,
    WIDTH,
    make_tiny_detector,
    make_tiny_dino,
    make_tiny_pipeline,
    make_tiny_teacher,
)
from PIL import Image
from safetensors.torch import load_file
from support.clips import REAL, write_clip, write_numbered
from support.programs import flowing
from torch.nn.functional import interpolate
from trainer.processes import run_and_kill, run_two
from trainer.training_data import tiny

import lgf_kernels as lgf
from lgf_kernels.core import files as files_module

CPU = torch.device("cpu")
BOX = [30.0, 16.0, 110.0, 80.0]  # in the 96 x 160 pixels of a clip
FITTED = torch.tensor(
    [30 * 107 / 160 - 5, 16 * 2 / 3, 110 * 107 / 160 - 5, 80 * 2 / 3]
)  # resized to 64 x 107, cut to 64 x 96


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_tiny_pipeline(folder / "pipeline")
    make_tiny_pipeline(folder / "text-to-video", image_to_video=False)
    make_tiny_teacher(folder / "sam2")
    make_tiny_detector(folder / "detector")
    make_tiny_dino(folder / "dino")
    make_tiny_dino(folder / "dino3", kind="dinov3_vit")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """24 frames with a caption and a box for the windows that begin with frames 0, 5 and 10."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "dog.mp4", frames=24)
    (folder / "dog.txt").write_text("a dog runs\n")
    (folder / "dog.json").write_text(json.dumps({"box": {"0": BOX, "5": BOX, "10": BOX}}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Runs with the same options share their models. Which windows there are is none of the models' business."""
    load, kept = extract._load, {}

    def load_once(options, *rest):
        key = repr(replace(options, sources=(), output=Path(), stride=1, max_frames=0))
        if key not in kept:
            kept[key] = load(options, *rest)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "_load", load_once)
        yield


def words_of(models, sources, output, *options, model="pipeline"):
    """Words of lgf extract on the tiny models."""
    words = ["extract", sources, "--output", output, "--model", models / model, "--teacher-model", models / "sam2"]
    return [str(word) for word in (*words, "--stride", 5, *options)]


@pytest.fixture(scope="module")
def run_into(models):
    """lgf extract on the tiny models, into a folder; the cache."""

    def run_extract(folder, sources, *options, model="pipeline"):
        _, *arguments = words_of(models, sources, folder, *options, model=model)
        assert commands.extract(arguments) == 0
        return WindowCache(folder)

    return run_extract


@pytest.fixture
def run(run_into, tmp_path):
    """The same, into a folder of the test's own."""
    return lambda *arguments, out="cache", **options: run_into(tmp_path / out, *arguments, **options)


@pytest.fixture(scope="module")
def made(run_into, clip, tmp_path_factory):
    """`made(*options)`: the cache of the clip with these options. It is made once, for tests that only read it."""
    return functools.cache(lambda *words, **options: run_into(tmp_path_factory.mktemp("made"), clip, *words, **options))


#: Three windows without a teacher: enough for tests of what is written and when.
BARE = "--teacher", "none", "--max-frames", 19


@pytest.fixture(scope="module")
def pipeline(models):
    return CogVideoXImageToVideoPipeline.from_pretrained(models / "pipeline")


@pytest.fixture(scope="module")
def sam2(models):
    return TransformersSam2(str(models / "sam2"), CPU)


def windows(cache):
    return {key: cache.path(key).read_bytes() for key in cache.keys()}


def report(cache):
    return report_in(cache.folder)


def report_in(folder):
    return json.loads((folder / "report.json").read_text())


def manifest(folder, *lines):
    """Write a manifest of these lines into a folder; its path."""
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "list.jsonl"


def frames_of(path, start):
    video = Video(path, 8)
    ((_, pixels),) = video.windows([start], FRAMES, Fit.cover(video.size, (HEIGHT, WIDTH)))
    return to_signed(pixels)


def tracks_of(sam2, video, prompt):
    return [
        interpolate(track.features.permute(0, 3, 1, 2), (4, 6), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        for track in sam2.track(video, prompt)
    ]


def logits_of(features, **options):
    return lgf.local_gram_flow(features[None].double(), backend="reference", **options)[0]


def test_latents_and_text_are_the_pipelines_own(made, clip, pipeline):
    cache = made()
    assert [cache.read(key).about["start"] for key in cache.keys()] == [0, 5, 10]
    text, _ = pipeline.encode_prompt("a dog runs", do_classifier_free_guidance=False, max_sequence_length=16)
    for key in cache.keys():
        tensors, about = cache.read(key)
        assert about["caption"] == "a dog runs" and about["video"] == str(clip / "dog.mp4")
        assert about["source_size"] == [96, 160]
        video = frames_of(clip / "dog.mp4", about["start"])
        with torch.no_grad():
            posterior = pipeline.vae.encode(video.transpose(0, 1)[None]).latent_dist
        assert tensors["latents"].shape == (8, 3, 8, 12)
        torch.testing.assert_close(tensors["latents"][None], torch.cat([posterior.mean, posterior.logvar], 1))
        torch.testing.assert_close(tensors["text"], text[0])


def test_images_are_noisy_first_frames_and_their_noise_depends_on_the_window_alone(made, clip, pipeline):
    cache = made()
    noise = lambda frame, key: cogvideox.noisy(frame[None], key)  # noqa: E731
    for key in cache.keys():
        frame = frames_of(clip / "dog.mp4", cache.read(key).about["start"])[0]
        seen = noise(frame, key)
        assert torch.equal(seen, noise(frame, key)) and seen.shape == (1, 3, HEIGHT, WIDTH)
        with torch.no_grad():
            expected = pipeline.vae.encode(seen.transpose(0, 1)[None]).latent_dist.parameters[0]
        torch.testing.assert_close(cache.read(key).tensors["image"], expected)
    assert expected.shape == (8, 1, 8, 12)


def test_the_noise_of_images_is_that_of_the_paper():
    noise = torch.cat([cogvideox.noisy(torch.zeros(1, 3, HEIGHT, WIDTH), str(i)) for i in range(400)]).flatten(1)
    sigmas = noise.std(1).log()
    assert sigmas.mean().item() == pytest.approx(-3.0, abs=0.1) and sigmas.std().item() == pytest.approx(0.5, abs=0.06)
    assert (noise.mean(1).abs() / noise.std(1)).max() < 0.05
    normal = noise / noise.std(1, keepdim=True)
    assert (normal.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.005)


def dino(models, name="dino"):
    return "--dino", "--dino-model", models / name


OTHERS = {"time": "latent", "window": 3, "boundary": "zero", "similarity": "dot"}


@pytest.fixture(
    scope="module",
    params=[{}, OTHERS, *(pytest.param({name: value}, marks=pytest.mark.slow) for name, value in OTHERS.items())],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def options(request):
    """The defaults, every option changed at once, and one at a time."""
    return request.param


@pytest.fixture
def lesson(made, models, options):
    """The cache of all that is stored of teachers with these options, and the frames from one that is compared to the next."""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    cache = made(*words, "--save-features", *dino(models))
    return cache, 4 if options.get("time") == "latent" else 1


def test_teacher_logits_are_the_flow_of_its_features(lesson, options, clip, sam2):
    cache, step = lesson
    tensors, about = cache.read(cache.keys()[1])
    video = frames_of(clip / "dog.mp4", about["start"])
    torch.testing.assert_close(torch.tensor(about["box"]), FITTED)
    pairs, side = (FRAMES - 1) // step, options.get("window", 7)
    assert cache.settings["grid"] == [pairs + 1, 4, 6]
    of_the_flow = {name: value for name, value in options.items() if name != "time"}
    for name, features in zip(("forward", "backward"), tracks_of(sam2, video, FITTED), strict=True):
        expected = logits_of(features[::step], **of_the_flow)
        stored = tensors[f"teacher_{name}"]
        assert stored.shape == (pairs, 4, 6, side * side) and stored.dtype == torch.float16
        torch.testing.assert_close(stored.double(), expected, rtol=2e-3, atol=1e-3)
        kept = tensors[f"features_sam2_{name}"]
        assert kept.dtype == torch.float16
        torch.testing.assert_close(kept.float(), features[::step], rtol=1e-3, atol=1e-3)
    assert not torch.equal(tensors["teacher_forward"], tensors["teacher_backward"])


def test_dino_features_are_those_of_the_same_frames(lesson, options, clip, models):
    cache, step = lesson
    teacher = Dino(Dino.Options(model=str(models / "dino")), CPU)
    for key in cache.keys():
        tensors, about = cache.read(key)
        expected = teacher.features(frames_of(clip / "dog.mp4", about["start"])[::step], (4, 6))
        stored = tensors["features_dino"]
        assert stored.shape == (8 // step + 1, 4, 6, DINO_CHANNELS) and stored.dtype == torch.float16
        torch.testing.assert_close(stored.float(), expected, rtol=1e-3, atol=1e-3)
        assert tensors["teacher_forward"].shape == (8 // step, 4, 6, options.get("window", 7) ** 2)


def test_masks_are_the_share_of_the_subject_in_each_token(run, clip, sam2):
    cache = run(clip, "--save-masks", "--max-frames", FRAMES)
    tensors, about = cache.read(cache.keys()[0])
    forward, _ = sam2.track(frames_of(clip / "dog.mp4", about["start"]), FITTED)
    masks = tensors["masks"].float()
    assert masks.shape == (FRAMES, 4, 6) and masks.min() >= 0 and masks.max() <= 1
    expected = interpolate((forward.masks > 0).float()[:, None], (4, 6), mode="bilinear", antialias=True)[:, 0]
    torch.testing.assert_close(masks, expected, rtol=1e-3, atol=1e-3)
    share = (forward.masks > 0).float().mean((1, 2))
    torch.testing.assert_close(masks.mean((1, 2)), share, rtol=0, atol=0.1)
    assert "features_sam2_forward" not in tensors


def test_dino_alone_needs_no_subject_and_changes_nothing_beside_itself(run, made, clip, models, tmp_path):
    source = manifest(tmp_path, {"video": str(clip / "dog.mp4"), "caption": "a dog runs"})
    alone = run(source, "--teacher", "none", *dino(models))
    both, without = made("--save-features", *dino(models)), made()
    assert [alone.read(key).about["start"] for key in alone.keys()] == [0, 5, 10, 15]
    names = {"latents", "image", "text", "teacher_forward", "teacher_backward"}
    for one, two, three in zip(alone.keys(), both.keys(), without.keys(), strict=False):
        tensors = both.read(two).tensors
        assert alone.read(one).tensors.keys() == names - {"teacher_forward", "teacher_backward"} | {"features_dino"}
        assert torch.equal(alone.read(one).tensors["features_dino"], tensors["features_dino"])
        assert tensors.keys() == names | {"features_dino", "features_sam2_forward", "features_sam2_backward"}
        assert without.read(three).tensors.keys() == names
        assert all(torch.equal(tensors[name], without.read(three).tensors[name]) for name in names - {"image"})


def test_teachers_by_names_are_those_of_the_older_options(made, models):
    """The same windows under the same names, so that a cache of before goes on."""
    chosen = ("--dino-model", models / "dino")
    assert windows(made("--teachers", "dino", "sam2", *chosen)) == windows(made(*dino(models)))
    assert windows(made("--teachers", "sam2")) == windows(made())
    assert windows(made("--teachers", "dino", *chosen)) == windows(made("--teacher", "none", *dino(models)))
    options = ("--teachers", "dino", "--teacher-options", f"dino.model={models / 'dino'}")
    assert made(*options).settings == made("--teachers", "dino", *chosen).settings


def test_windows_with_other_dino_features_have_other_keys(run, clip, models):
    keys = {
        out: frozenset(run(clip, "--teacher", "none", "--max-frames", FRAMES, *options, out=out).keys())
        for out, options in {
            "none": [], "two": dino(models), "three": dino(models, "dino3"),
            "latent": [*dino(models), "--time", "latent"], "low": [*dino(models), "--height", 48],
        }.items()
    }  # fmt: skip
    assert len(frozenset().union(*keys.values())) == 5
    with pytest.raises(TrainerError, match=r"was made with dino_model = .*, and this run has nothing"):
        run(clip, "--teacher", "none", out="two")
    with pytest.raises(TrainerError, match=r"was made with dino_model = .*dino', and this run has .*dino3"):
        run(clip, "--teacher", "none", *dino(models, "dino3"), out="two")


@pytest.mark.parametrize("recipe", ["repa-dino", "videorepa", "moalign"])
def test_recipes_train_on_dino_features(made, models, tmp_path, recipe):
    model = "pipeline" if recipe == "repa-dino" else "text-to-video"
    cache = made("--teacher", "none", *dino(models), model=model).folder
    changes = {"model__path": models / model, "data__cache": cache, "alignment__features": "dino"}
    changes |= {"projector__form": "sam2videox"}  # the heads of the others are for VideoMAE's grid
    arguments = tiny(tmp_path, training__steps=2, **changes)
    assert lgf_command(["train", recipe, *arguments]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["alignment"] > 0 for row in rows)


@pytest.mark.parametrize("recipe", ["repa", "align4gen", "gram"])
def test_recipes_train_on_image_features(made, models, tmp_path, recipe):
    options = [f"dino.model={models / 'dino'}", f"sam2-image.model={models / 'sam2'}"]
    cache = made("--time", "latent", "--teachers", "dino", "sam2-image", "--teacher-options", *options)
    tensors = cache.read(cache.keys()[0]).tensors
    assert tensors["features_sam2_image"].shape == (3, 4, 6, TEACHER_CHANNELS)
    changes = {"model__path": models / "pipeline", "data__cache": cache.folder, "training__steps": 2}
    assert lgf_command(["train", recipe, *tiny(tmp_path, **changes)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["alignment"] > 0 for row in rows)
    if recipe == "align4gen":
        head = load_file(tmp_path / "run" / "projector.safetensors")
        assert list(head.values())[-1].shape[0] == DINO_CHANNELS + TEACHER_CHANNELS


def test_features_of_an_encoder_of_ones_own(run, made, clip, models, tmp_path, monkeypatch):
    """What docs/trainer.md says, done."""
    cache = WindowCache(shutil.copytree(made().folder, tmp_path / "cache"))
    text = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "features_mine" in b]
    seen = []
    monkeypatch.chdir(tmp_path)
    before = {key: cache.read(key) for key in cache.keys()}
    exec(block, {"encoder": lambda video: (seen.append(video), torch.randn(5, 2, 3, 10))[1]})
    assert cache.keys() == list(before)
    for (key, (tensors, about)), video in zip(before.items(), seen, strict=True):
        after = cache.read(key)
        assert after.about == about and after.tensors.keys() == tensors.keys() | {"features_mine"}
        assert torch.equal(video, frames_of(clip / "dog.mp4", about["start"]))
    with_mine = windows(cache)
    run(clip)
    assert windows(cache) == with_mine, "lgf extract keeps them"
    for recipe in ("repa-dino", "videorepa"):
        changes = {"model__path": models / "pipeline", "alignment__features": "mine", "projector__form": "sam2videox"}
        arguments = tiny(tmp_path, training__steps=1, **changes)
        assert lgf_command(["train", recipe, *arguments, "--run.output", str(tmp_path / recipe)]) == 0


def test_the_frames_of_a_window_whose_video_is_gone(made, clip, tmp_path):
    cache, video = made(), shutil.copy(clip / "dog.mp4", tmp_path)
    about = cache.read(cache.keys()[1]).about | {"video": str(video)}
    assert torch.equal(read_window(cache.settings, about), frames_of(clip / "dog.mp4", 5))
    Path(video).unlink()
    with pytest.raises(VideoError, match=r"dog\.mp4: no such file"):
        read_window(cache.settings, about)


def test_text_to_video_has_no_image(made, models):
    cache, other = made("--teacher", "none", *dino(models), model="text-to-video"), made()
    assert "image" not in cache.read(cache.keys()[0]).tensors and cache.settings["image_to_video"] is False
    assert "image" in other.read(other.keys()[0]).tensors and other.settings["image_to_video"] is True


def test_without_a_teacher_no_box_is_needed(run, tmp_path):
    write_clip(tmp_path / "a.mp4", frames=12)
    cache = run(tmp_path / "a.mp4", "--teacher", "none", "--allow-empty-captions")
    assert sorted(cache.read(cache.keys()[0]).tensors) == ["image", "latents", "text"]
    assert cache.read(cache.keys()[0]).about["caption"] == ""


def test_settings_say_all_that_the_windows_have_in_common(made, models):
    settings = made().settings
    expected = {
        "format": 1, "model": str(models / "pipeline"), "image_to_video": True, "frames": 9, "height": 64, "width": 96,
        "fps": 8.0, "stride": 5, "grid": [9, 4, 6], "time": "frames", "window": 7, "similarity": "cosine",
        "boundary": "exclude", "teacher": "transformers", "teacher_model": str(models / "sam2"), "dtype": "float32",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


def test_masks_prompt_too(run, tmp_path, sam2):
    """However a picture holds what is seen of it: in gray, opaque colours, indices of colours, or as what is cut out."""
    write_clip(tmp_path / "dog.mp4", frames=24)
    inside = torch.zeros(96, 160, dtype=torch.uint8)
    inside[16:80, 30:110] = 255
    gray, black, white = Image.fromarray(inside.numpy()), Image.new("L", (160, 96), 0), Image.new("L", (160, 96), 255)
    indices = Image.fromarray((inside == 0).byte().numpy())
    indices.putpalette([255, 255, 255, 0, 0, 0])
    blue, cut_out = Image.merge("RGBA", (black, black, gray, white)), Image.merge("LA", (white, gray))
    masks = {0: gray, 5: blue, 10: indices, 15: cut_out}
    for start, mask in masks.items():
        mask.save(tmp_path / f"{start}.png")
    line = {"video": "dog.mp4", "caption": "a dog", "mask": {str(start): f"{start}.png" for start in masks}}
    cache = run(manifest(tmp_path, line), "--save-masks")
    fit = Fit.cover((96, 160), (HEIGHT, WIDTH))
    resized = interpolate(inside[None, None].float(), fit.resized, mode="bilinear", antialias=True)[0, 0]
    prompt = fit.cut(resized >= 127.5)
    forward, _ = sam2.track(frames_of(tmp_path / "dog.mp4", 0), prompt)
    # Only the mask of the prompted frame tells prompts apart: the tiny teacher's features hardly depend on them.
    subject = interpolate((forward.masks[:1] > 0).float()[None], (4, 6), mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(subject.mean(), prompt.float().mean(), rtol=0, atol=0.05)
    assert len(cache.keys()) == len(masks)
    for tensors, about in map(cache.read, cache.keys()):
        assert about["box"] is None
        torch.testing.assert_close(tensors["masks"][0].float(), subject, rtol=1e-3, atol=1e-3, msg=str(about["start"]))


def test_a_video_by_itself_has_what_stands_beside_it(tmp_path):
    """As it would in its folder: the suffix in capitals, and a mask in a folder of its own."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "dog.png").write_bytes(b"mask")
    (tmp_path / "DOG.MOV").write_bytes(b"video")
    (tmp_path / "DOG.json").write_text('{"caption": "a dog", "mask": "masks/dog.png"}')
    for source in (tmp_path, tmp_path / "DOG.MOV"):
        (clip,) = list_clips([source])
        assert clip.caption == "a dog"
        with clip.masks[0]() as mask:
            assert mask.read() == b"mask"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_mask_may_be_any_kind_of_picture(mode):
    """An opaque alpha channel is no subject, and colour 0 of a palette need not be black."""
    inside = np.zeros((6, 8), dtype=np.uint8)
    inside[1:4, 2:7] = 255
    grey = Image.fromarray(inside)
    pictures = {"P": lambda: grey.convert("RGB").quantize(2), "I;16": lambda: Image.fromarray(inside.astype(np.uint16))}
    picture = pictures.get(mode, lambda: grey.convert(mode))()
    assert picture.mode == mode
    assert (not_black(picture) == (inside > 0)).all()


def test_a_subject_cut_out_of_its_picture_is_a_mask():
    picture = Image.new("RGBA", (3, 1), (255, 255, 255, 0))
    picture.putpixel((1, 0), (9, 0, 0, 255))
    assert not_black(picture).tolist() == [[False, True, False]]


def test_windows_without_a_box_are_detected_or_left_out(run, tmp_path, models):
    write_clip(tmp_path / "dog.mp4", frames=24)
    source = manifest(tmp_path, {"video": "dog.mp4", "caption": "a dog", "box": BOX})
    cache = run(source, "--max-frames", 19)
    assert [cache.read(key).about["start"] for key in cache.keys()] == [0]
    reasons = {(what.rpartition(", ")[2], reason) for what, reason, _ in report(cache)["skipped"]}
    assert reasons == {("frame 5", "no box"), ("frame 10", "no box")}
    assert '"box": {"5":' in report(cache)["skipped"][-1][2] + report(cache)["skipped"][-2][2]

    detect = ["--max-frames", 19, "--detect", "a person . an animal", "--detector", models / "detector"]
    detect += ["--detect-threshold", "0"]
    found = run(source, *detect, out="detected")
    boxes = {found.read(key).about["start"]: found.read(key).about["box"] for key in found.keys()}
    assert sorted(boxes) == [0, 5, 10]
    torch.testing.assert_close(torch.tensor(boxes[0]), FITTED)
    assert all(0 <= b[0] < b[2] <= WIDTH and 0 <= b[1] < b[3] <= HEIGHT for b in boxes.values())

    manifest(tmp_path, {"video": "dog.mp4", "caption": "a dog"})
    with pytest.raises(
        TrainerError, match="no window was made: teachers such as sam2 need a subject: give boxes or masks"
    ):
        run(source, out="without")
    with pytest.raises(TrainerError, match="no window was made"):
        run(source, *detect[:-1], "1", out="nothing")
    skipped = report_in(tmp_path / "nothing")["skipped"]
    assert [reason for _, reason, _ in skipped] == ["nothing detected"] * 3
    assert 'fits "a person . an animal"' in skipped[0][2]


def test_boxes_that_overlap_are_one():
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 21], [5, 0, 15, 10], [7, 7, 7, 7]]
    )
    assert torch.equal(suppressed(boxes), boxes[[0, 2, 3, 4, 5]])
    assert suppressed(boxes[:0]).shape == (0, 4)


def test_windows_with_several_subjects_are_left_out(run, tmp_path, models, monkeypatch):
    source = manifest(tmp_path, {"video": "dog.mp4", "caption": "a dog", "box": {"5": BOX}})
    write_clip(tmp_path / "dog.mp4", frames=24)
    detect = [
        "--max-frames",
        19,
        "--detect",
        "a person . an animal",
        "--detector",
        models / "detector",
        "--single-subject",
    ]
    boxes = iter([torch.tensor([[0.0, 0, 9, 9], [20, 0, 30, 9]]), torch.tensor([[0.0, 0, 9, 9]])])
    monkeypatch.setattr(Detector, "__call__", lambda self, frame: next(boxes))
    found = run(source, *detect, out="single")
    assert sorted(found.read(key).about["start"] for key in found.keys()) == [5, 10], "a box that is given is taken"
    ((what, reason, detail),) = report(found)["skipped"]
    assert (reason, detail) == ("several subjects", '2 places in the first frame fit "a person . an animal"')
    assert what.endswith("frame 0")
    with pytest.raises(TrainerError, match="single_subject = True, and this run has nothing"):
        run(source, *detect[:-1], out="single")
    with pytest.raises(TrainerError, match="Give --detect TEXT"):
        run(source, "--single-subject", out="without")
    with pytest.raises(TrainerError, match=r"--single-subject .* none of the teachers \(dino\) needs one"):
        run(source, *detect, "--teachers", "dino", out="unneeded")


def test_a_box_beside_what_the_model_sees(run, tmp_path):
    write_clip(tmp_path / "dog.mp4", frames=9)
    (tmp_path / "dog.txt").write_text("a dog")
    (tmp_path / "dog.json").write_text(json.dumps({"box": [0, 0, 7, 96]}))
    with pytest.raises(TrainerError, match="no window was made"):
        run(tmp_path / "dog.mp4")
    assert "outside of the middle" in report_in(tmp_path / "cache")["skipped"][0][2]


def test_a_mask_of_nothing(run, tmp_path):
    write_clip(tmp_path / "dog.mp4", frames=9)
    Image.new("RGBA", (160, 96), "black").save(tmp_path / "mask.png")
    source = manifest(tmp_path, {"video": "dog.mp4", "caption": "a dog", "mask": "mask.png"})
    with pytest.raises(TrainerError, match="no window was made"):
        run(source)
    assert "the mask is empty" in report_in(tmp_path / "cache")["skipped"][0][2]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_left_out(run, clip, tmp_path, monkeypatch, value):
    monkeypatch.setattr(Encoders, "caption", lambda self, caption: {"text": torch.full((16, 16), value)})
    with pytest.raises(TrainerError, match="no window was made"):
        run(clip, "--max-frames", FRAMES)
    skipped = report_in(tmp_path / "cache")["skipped"]
    details = [detail for _, reason, detail in skipped if reason == "not finite"]
    assert details == ["text has values that are not finite or too large for torch.float32"]


def test_captions_in_a_manifest_may_hold_line_separators(clip, tmp_path):
    captions = ["a dog\u2028runs", "a dog\x85sleeps"]
    lines = [json.dumps({"video": str(clip / "dog.mp4"), "caption": c}, ensure_ascii=False) for c in captions]
    (tmp_path / "list.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    assert [found.caption for found in list_clips([tmp_path / "list.jsonl"])] == captions


def test_texts_as_other_programs_write_them(tmp_path):
    (tmp_path / "list.jsonl").write_bytes(
        b'\xef\xbb\xbf{"video": "a.mp4", "caption": "a dog \\ud83d"}'
    )  # half an emoji
    assert [found.caption for found in list_clips([tmp_path / "list.jsonl"])] == ["a dog ?"]
    (tmp_path / "list.jsonl").write_bytes('{"video": "a.mp4", "caption": "un café"}'.encode("latin-1"))
    with pytest.raises(TrainerError, match=r"list.jsonl cannot be read .*byte 0xe9.* a text file in UTF-8"):
        list_clips([tmp_path / "list.jsonl"])


def test_a_caption_that_may_not_be_read(tmp_path, monkeypatch):
    for name in ("a.mp4", "a.txt"):
        (tmp_path / name).write_text("a dog")

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(TrainerError, match=r"a\.txt cannot be read \(Permission denied\)"):
        list_clips([tmp_path])


def test_folders_manifests_and_shards_give_the_same_windows(run, made, clip, tmp_path):
    line = {"video": str(clip / "dog.mp4"), "caption": "a dog runs", "box": {"0": BOX, "5": BOX, "10": BOX}}
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n\n")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for name in ("dog.txt", "dog.json", "dog.mp4"):
            archive.add(clip / name, f"deep/{name}")
    folder, shards = made(), run(tmp_path / "shards", out="from-shards")
    assert shards.keys() == folder.keys()
    for key in folder.keys():
        expected, found = folder.read(key), shards.read(key)
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
        assert found.about | {"video": ""} == expected.about | {"video": ""}
        assert found.about["video"].endswith("dog.mp4")
    for source in (tmp_path / "list.jsonl", tmp_path / "shards" / "0.tar", clip / "dog.mp4"):
        again = run(source, out="from-shards")
        assert report(again)["written"] == [] and report(again)["present"] == folder.keys(), source


def test_keys_tell_apart_what_differs(run, tmp_path, clip):
    def keys(caption="a dog", box=BOX, seed=0, out=None, **options):
        write_clip(tmp_path / "dog.mp4", frames=9, seed=seed)
        source = manifest(tmp_path, {"video": "dog.mp4", "caption": caption, "box": box})
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return run(source, *words, out=out or "cache").keys()

    assert keys() == keys() and len(keys()) == 1
    assert keys(caption=" a dog\n") == keys()
    assert len(keys(caption="a cat")) == 2
    assert len(keys(box=[20, 16, 110, 80])) == 3
    assert len(keys(seed=1)) == 4
    assert keys(out="five", window=5) not in ([key] for key in keys())


def test_max_frames_and_stride_choose_windows(run, clip):
    cache = run(clip, "--teacher", "none", "--max-frames", 18)
    assert [cache.read(key).about["start"] for key in cache.keys()] == [0, 5]
    with pytest.raises(TrainerError, match="--max-frames is 8, and a window alone has 9 frames"):
        run(clip, "--max-frames", 8, out="none")


def test_without_max_frames_a_window_may_be_longer_than_the_default(run, clip, monkeypatch):
    """LTX-Video's has 161 frames, and HunyuanVideo's 129."""
    monkeypatch.setattr(extract, "MAX_FRAMES", 8)
    cache = run(clip, "--teacher", "none")
    assert [cache.read(key).about["start"] for key in cache.keys()] == [0]


def test_running_again_makes_nothing_twice_and_mends_what_is_damaged(run, made, clip, tmp_path, capsys, monkeypatch):
    cache = WindowCache(shutil.copytree(made(*BARE).folder, tmp_path / "cache"))
    before, times = windows(cache), {key: cache.path(key).stat().st_mtime_ns for key in cache.keys()}
    with monkeypatch.context() as patched:
        patched.setattr(extract, "_load", None)  # no model is needed
        run(clip, *BARE)
    assert report(cache)["written"] == [] and report(cache)["present"] == cache.keys()
    assert {key: cache.path(key).stat().st_mtime_ns for key in cache.keys()} == times
    damaged, cut, gone = cache.keys()
    cache.path(damaged).write_bytes(before[damaged][:-1] + bytes([before[damaged][-1] ^ 1]))
    cache.path(cut).write_bytes(before[cut][:100])
    cache.path(gone).unlink()
    capsys.readouterr()
    run(clip, *BARE)
    assert windows(cache) == before and report(cache)["damaged"] == 2
    assert (
        "3 windows written, 2 of them because what was there was damaged, 0 were there already"
        in capsys.readouterr().out
    )


def test_windows_for_which_other_frames_were_chosen_are_made_again(run, tmp_path, monkeypatch, capsys):
    """Windows of a video that does not say when its frames are shown, and no others."""
    (videos := tmp_path / "videos").mkdir()
    for name in ("a.avi", "b.mp4"):
        write_numbered(videos / name, 60, 25).with_suffix(".txt").write_text("numbers")
    right, real = windows(run(videos, *BARE, out="right")), Timeline.sampled
    with monkeypatch.context() as earlier:
        earlier.setattr(Timeline, "sampled", lambda self, rate: real(self._replace(slack=self.tick / 2), rate))
        earlier.setattr(Video, "reread", lambda *_: False)
        old = windows(run(videos, *BARE, out="old"))
    assert old.keys() == right.keys() and sum(old[key] != right[key] for key in old) == 3
    capsys.readouterr()
    cache = run(videos, *BARE, out="old")
    assert windows(cache) == right and report(cache)["outdated"] == 3 and len(report(cache)["present"]) == 3
    assert "3 windows written, 3 because an earlier version had chosen other frames, 3 were" in capsys.readouterr().out
    run(videos, *BARE, out="old")
    assert len(report(cache)["present"]) == 6 and report(cache)["outdated"] == 0


def test_other_settings_are_refused(run_into, made, clip):
    with pytest.raises(TrainerError, match="made with window = 7, and this run has 5"):
        run_into(made().folder, clip, "--window", 5)


@pytest.fixture
def many(tmp_path):
    """Good and bad videos, next to each other."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for index in range(3):
        write_clip(folder / f"{index}.mp4", frames=15 + 5 * index, seed=index)
    write_clip(folder / "short.mp4", frames=5)
    write_clip(folder / "cut.mp4", frames=40, options={"movflags": "faststart"})
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[: (folder / "cut.mp4").stat().st_size * 6 // 10])
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").write_bytes(b"")
    for path in sorted(folder.glob("*.mp4")):
        path.with_suffix(".txt").write_text(f"a {path.stem}")
        path.with_suffix(".json").write_text(json.dumps({"box": {str(start): BOX for start in range(0, 40, 5)}}))
    write_clip(folder / "silent.mp4", frames=15)
    return folder


def test_bad_videos_are_left_out_and_listed(run, many, capsys):
    cache = run(many, "--teacher", "none")
    by_video = {}
    for key in cache.keys():
        about = cache.read(key).about
        by_video.setdefault(Path(about["video"]).name, []).append(about["start"])
    cut = by_video.pop("cut.mp4")
    assert by_video == {"0.mp4": [0, 5], "1.mp4": [0, 5, 10], "2.mp4": [0, 5, 10, 15]}
    assert cut == list(range(0, 5 * len(cut), 5)) and 1 <= len(cut) <= 3
    reasons = {Path(what).name: reason for what, reason, _ in report(cache)["skipped"]}
    assert reasons == {
        "short.mp4": "too short", "cut.mp4": "cut off", "text.mp4": "cannot be decoded",
        "empty.mp4": "cannot be decoded", "silent.mp4": "no caption",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith(f"8 videos: {len(cache.keys())} windows written, 0 were there already; ")
    assert f"{sum(map(len, windows(cache).values())) / 1e6:.1f} MB" in out
    assert "left out, too short: 1\n" in out and "short.mp4: 5 frames at 8 per second, and 9 are needed" in out
    assert report(cache)["written"] == cache.keys()


def test_nothing_usable_is_an_error_in_one_line(models, tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "a.txt").write_text("a dog")
    with pytest.raises(SystemExit) as stopped:
        lgf_command(words_of(models, tmp_path, tmp_path / "cache"))
    assert str(stopped.value).startswith("lgf extract: no window was made") and "\n" not in str(stopped.value)
    assert "a.mp4 is not a video" in capsys.readouterr().out


def test_a_full_disk_keeps_what_is_there(run, made, clip, tmp_path, monkeypatch):
    whole = windows(made(*BARE))
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:  # settings and two windows
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files_module.os, "fsync", full)
    with pytest.raises(TrainerError, match=r"the disk is full\. Make room and run again") as raised:
        run(clip, *BARE)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    kept = windows(WindowCache(tmp_path / "cache"))
    assert len(kept) == 2 and kept.items() <= whole.items()
    assert windows(run(clip, *BARE)) == whole


@pytest.mark.slow  # `test_distributed.py` has it without a teacher, in processes that do more
def test_two_processes_write_what_one_writes(run, many, models, tmp_path):
    alone = run(many, *dino(models))
    words = words_of(models, many, tmp_path / "two", *dino(models))
    done = run_two("-m", "lgf_cli", *words, ACCELERATE_USE_CPU="true")
    two = WindowCache(tmp_path / "two")
    assert windows(two) == windows(alone)
    one, both = report(alone), report(two)
    assert all(both[name] == one[name] for name in ("videos", "written", "present", "skipped", "bytes"))
    assert done.stdout.count("videos: ") == 1, "one account, not one for each process"


@pytest.mark.slow  # `test_killed.py` has it without teachers, in a process that does more
def test_killed_at_any_moment_it_goes_on_from_there(run, many, models, tmp_path):
    whole = windows(run(many, *dino(models)))
    cache = tmp_path / "killed"
    words = words_of(models, many, cache, *dino(models))
    for module, function, call, windows_before in (
        ("lgf_trainer.data.cache", "WindowCache.write", 1, 1),
        ("os", "replace", -4, 4),
    ):
        run_and_kill(module, function, call, words)
        kept = windows(WindowCache(cache))
        assert len(kept) == windows_before and kept.items() <= whole.items()
    after = run(many, *dino(models), out="killed")
    assert windows(after) == whole
    assert len(report(after)["present"]) == len(kept) and report(after)["damaged"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.mp4"], r"gone\.mp4: no such file or folder"),
        (["."], "there is no video in"),
        (["--fps", "0"], "--fps must be above 0, got 0.0"),
        (["--fps", "inf"], "--fps must be a finite number, got inf"),
        (["--height", "0"], "height is 0, and the model takes a multiple of 16, such as 16"),
        (["--stride", "0"], "--stride must be at least 1, got 0"),
        (["--window", "6"], "--window must be odd and at most 15, got 6"),
        (["--teacher-options", "sam2.window=6"], "--teachers sam2: window must be odd and at most 15, got 6"),
        (["--teachers", "raft", "--teacher-options", "raft.size=[128, 0]"], "raft: size must be at least 1, got 0"),
        (
            ["--teachers", "raft", "--teacher-options", "raft.size=[128, 190]", "raft.weights=gone.pth"],
            r"RAFT needs frames of 128 x 128 at least and multiples of 8, got 128 x 190",
        ),
        (
            ["--teachers", "tracks", "--height", "112", "--teacher-options", "tracks.weights=gone.pth"],
            r"RAFT needs frames of 128 x 128 at least and multiples of 8, got 112 x ",
        ),
        (["--teachers", "tracks", "--teacher-options", "tracks.points=0"], "tracks: points must be at least 1, got 0"),
        (
            ["--teachers", "tracks", "--teacher-options", "tracks.threshold=0"],
            "tracks: threshold must be above 0, got 0",
        ),
        (
            ["--teachers", "videomae", "--teacher-options", "videomae.reduction=0"],
            "reduction must be at least 1, got 0",
        ),
        (["--detect-threshold", "2"], "--detect-threshold must be at most 1, got 2"),
        (["--frames", "10"], "frames is 10, and the model takes a multiple of 4 plus 1, such as 9"),
        (["--height", "60"], "height is 60, and the model takes a multiple of 16, such as 48"),
        (["--width", "10"], "width is 10, and the model takes a multiple of 16, such as 16"),
        (["--model", "/nothing/here"], "/nothing/here: no such folder"),
        (["--teacher-model", "/nothing/here"], "Sam2VideoModel cannot be loaded from /nothing/here"),
        (
            ["--teacher-model", "{models}/dino"],
            "dino holds a model of type dinov2, and one of type sam2_video is needed",
        ),
        (
            ["--detect", "a", "--detector", "{models}/sam2"],
            "sam2 holds a model of type sam2_video, and one of type ground",
        ),
        (["--dino", "--dino-model", "/nothing/here"], "AutoModel cannot be loaded from /nothing/here"),
        (
            ["--dino", "--dino-model", "{models}/sam2"],
            "sam2 holds a model of type sam2_video, and one of type dinov3_vit",
        ),
    ],
)
def test_bad_options_are_refused(arguments, message, models, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = [] if arguments[0] in ("gone.mp4", ".") else [str(clip)]
    arguments = [word.format(models=models) for word in arguments]
    defaults = {"--model": models / "pipeline", "--teacher-model": models / "sam2"}
    words = [str(w) for n, v in defaults.items() if n not in arguments for w in (n, v)]
    with pytest.raises(TrainerError, match=message) as raised:
        commands.extract([*sources, *arguments, "--output", "cache", *words])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "list.jsonl, line 2 is not JSON"),
        ("[]", "line 2 is not a JSON object"),
        ('{"caption": "a"}', "line 2 names no video"),
        ('{"video": "a.mp4", "caption": 3}', "the caption must be a text, and is 3"),
        ('{"video": "a.mp4", "box": [1, 2, 3]}', "a box is .* not \\[1, 2, 3\\]"),
        ('{"video": "a.mp4", "box": [5, 2, 3, 9]}', "with x0 < x1"),
        ('{"video": "a.mp4", "box": [NaN, 2, 3, 9]}', "with x0 < x1"),
        ('{"video": "a.mp4", "box": {"first": [1, 2, 3, 4]}}', "by the number of a window's first frame"),
    ],
)
def test_bad_lines_of_a_manifest_are_named(line, message, tmp_path):
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4"}\n' + line)
    with pytest.raises(TrainerError, match=message):
        list_clips([tmp_path / "list.jsonl"])


def test_sources(tmp_path, clip):
    (tmp_path / "b").mkdir()
    for name in ("z.mp4", "b/a.MOV", "b/.hidden.mp4", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "z.txt").write_text("the last")
    clips = list_clips([tmp_path])
    assert [(Path(c.name).name, c.caption) for c in clips] == [("a.MOV", None), ("z.mp4", "the last")]
    assert list_clips([manifest(tmp_path, {"video": "gone.mp4", "caption": "a"})])[0].name == str(tmp_path / "gone.mp4")
    (tmp_path / "broken.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(TrainerError, match=r"broken\.tar is not an uncompressed \.tar file"):
        list_clips([tmp_path / "broken.tar"])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(clip / "dog.mp4", "dog.mp4")
    with pytest.raises(TrainerError, match="uncompressed"):
        list_clips([tmp_path / "packed.tar"])
    with pytest.raises(TrainerError, match="neither a video"):
        list_clips([tmp_path / "notes.md"])


def test_a_missing_video_of_a_manifest_is_left_out(run, clip, tmp_path):
    lines = [{"video": "gone.mp4", "caption": "a"}, {"video": str(clip / "dog.mp4"), "caption": "a dog", "box": BOX}]
    cache = run(manifest(tmp_path, *lines))
    assert len(cache.keys()) == 1
    gone = [tuple(rest) for what, *rest in report(cache)["skipped"] if what.endswith("gone.mp4")]
    assert gone == [("cannot be read", "No such file or directory")]


def test_sizes_come_from_the_model(models):
    student = Generator.read(str(models / "pipeline"))
    assert (student.image_to_video, student.frames, student.height, student.width) == (True, FRAMES, HEIGHT, WIDTH)
    assert (student.temporal, student.spatial, student.text[0]) == (4, 16, 16)
    assert student.token_grid(49, 480, 720) == (13, 30, 45)
    assert [student.frames_of_token(k) for k in (0, 1, 12)] == [range(1), range(1, 5), range(45, 49)]
    student.temporal = 8  # CogVideoX1.5: a token is two latent frames
    assert student.token_grid(81, 768, 1360) == (11, 48, 85)


def test_help_teaches(terminal, capsys):
    with pytest.raises(SystemExit) as stopped:
        lgf_command(["extract", "--help"])
    text = flowing(capsys.readouterr().out)
    assert stopped.value.code == 0
    for wanted in (
        "lgf extract videos/ --output cache",
        "accelerate launch",
        "--detect",
        "--save-features",
        "default: 20",
    ):
        assert wanted in text, wanted


@pytest.mark.parametrize("name", ["01_dog.mp4"])
def test_a_real_video(run, sam2, tmp_path, name):
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not here; LGF_TEST_VIDEOS names its directory")
    line = {"video": str(REAL / name), "caption": "a dog", "box": {"20": [300, 100, 900, 700]}}
    cache = run(manifest(tmp_path, line), "--stride", 20)
    (key,) = cache.keys()
    tensors, about = cache.read(key)
    assert about["start"] == 20 and about["source_size"] == [720, 1280]
    features, _ = tracks_of(sam2, frames_of(REAL / name, 20), torch.tensor(about["box"]))
    torch.testing.assert_close(tensors["teacher_forward"].double(), logits_of(features), rtol=2e-3, atol=1e-3)


def test_windows_of_changed_videos_stand_beside_those_of_the_video(run, clip, tmp_path, pipeline):
    alone = windows(run(clip, *BARE, out="alone"))
    cache = run(clip, *BARE, "--transforms", "shuffle", "inpaint")
    assert windows(cache) == alone, (
        "windows of the video stay what they are, and the only ones unless others are asked for"
    )
    both = WindowCache(cache.folder, transforms=("shuffle", "inpaint"))
    changed = {key: both.read(key) for key in both.filled() if "+" in key}
    assert len(changed) == 2 * len(alone) and len(report(cache)["written"]) == 3 * len(alone)
    for key, window in changed.items():
        own, _, transform = key.partition("+")
        video = frames_of(clip / "dog.mp4", window.about["start"])
        expected = TRANSFORMS[transform](video, torch.Generator().manual_seed(mix(key)))
        assert window.about["transform"] == transform
        assert torch.equal(expected[0], video[0]) and not torch.equal(expected, video)
        with torch.no_grad():
            posterior = pipeline.vae.encode(expected.transpose(0, 1)[None]).latent_dist
        torch.testing.assert_close(window.tensors["latents"][None], torch.cat([posterior.mean, posterior.logvar], 1))
        assert not torch.equal(window.tensors["latents"], cache.read(own).tensors["latents"])

    run(clip, *BARE, "--transforms", "speed", "shuffle", "shuffle")  # later, into the same cache
    assert len(report(cache)["present"]) == 2 * len(alone)
    assert len(report(cache)["written"]) == len(alone) and len(
        WindowCache(cache.folder, transforms=("speed",)).keys()
    ) == 2 * len(alone)


def test_the_subject_is_looked_for_once_for_a_window_and_its_changes(run, tmp_path, models, monkeypatch):
    source = manifest(tmp_path, {"video": "dog.mp4", "caption": "a dog"})
    write_clip(tmp_path / "dog.mp4", frames=24)
    found = iter([torch.tensor([[0.0, 0, 9, 9]]), torch.zeros(0, 4)])
    monkeypatch.setattr(Detector, "__call__", lambda self, frame: next(found))
    cache = run(
        source, "--max-frames", 14, "--detect", "a dog", "--detector", models / "detector", "--transforms", "speed"
    )
    assert len(report(cache)["written"]) == 2
    assert [what.rpartition(", ")[2] for what, _, _ in report(cache)["skipped"]] == ["frame 5"]


def test_transforms_do_not_go_with_files_made_of_the_video(clip, models, tmp_path):
    words = words_of(
        models, clip, tmp_path / "cache", "--teacher", "none", "--teachers", "raft", "--transforms", "speed"
    )
    with pytest.raises(
        TrainerError, match="--transforms change the video, and raft reads files that were made of it as it is"
    ):
        commands.extract([*words[1:], "--teacher-options", "raft.files=.flow.npy"])
