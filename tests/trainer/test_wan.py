"""Wan2.1: what is cached against diffusers' own pipelines, runs, and what is refused."""

import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState
from diffusers import WanImageToVideoPipeline, WanPipeline
from lgf_cli import main as lgf
from lgf_trainer.commands import parse_recipe
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.runtime import recipe
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.testing import CLIP_WIDTH, FRAMES, HEIGHT, WIDTH, make_tiny_wan
from lgf_trainer.train import TrainingRun
from PIL import Image
from trainer.generator_cases import CPU, picture, samples, video, window_of
from trainer.run_outputs import metrics
from trainer.training_data import SETTINGS, WindowCache, extraction, make_cache, tiny, wan_window


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> pipeline."""
    folder = tmp_path_factory.mktemp("wan")
    return {kind: str(make_tiny_wan(folder / kind, image_to_video=kind == "i2v")) for kind in ("t2v", "i2v")}


@pytest.fixture(params=["t2v", "i2v"])
def kind(request):
    return request.param


@pytest.fixture
def generator(folders, kind):
    return Generator.read(folders[kind])


# --- what is cached -------------------------------------------------------------------------------------------


def test_text_is_the_pipelines_and_zero_behind_the_caption(folders):
    pipeline = WanPipeline.from_pretrained(folders["t2v"])
    expected, _ = pipeline.encode_prompt(
        " a  dog &amp; runs ", do_classifier_free_guidance=False, max_sequence_length=512
    )
    for kind in ("t2v", "i2v"):  # the latter's own function needs ftfy
        encoders = Encoders(Generator.read(folders[kind]), CPU, torch.float32, text_only=True)
        text = encoders.caption(" a  dog &amp; runs ")["text"]
        length = int(text.any(1).sum())
        assert text.shape == (512, 16) and 5 < length < 30 and not text[length:].any()
        if kind == "t2v":
            torch.testing.assert_close(text, expected[0])


def test_the_image_condition_is_the_pipelines(folders):
    generator = Generator.read(folders["i2v"])
    window = window_of(generator.path)
    pipeline = WanImageToVideoPipeline.from_pretrained(folders["i2v"])
    with torch.no_grad():
        _, condition = pipeline.prepare_latents(
            video()[:1], 1, 4, HEIGHT, WIDTH, FRAMES, torch.float32, CPU, torch.Generator().manual_seed(0)
        )
        embedded = pipeline.encode_image(picture(), CPU)[0]
    sample = generator.image(window, torch.Generator(), torch.zeros(4, 3, 8, 12))
    torch.testing.assert_close(sample["image"], condition[0])
    torch.testing.assert_close(sample["image_embedding"], embedded)
    assert sample["image"].shape == (8, 3, 8, 12) and sample["image_embedding"].shape == (17, CLIP_WIDTH)
    assert sample["image"][:4, 0].eq(1).all() and not sample["image"][:4, 1:].any()


def test_latents_are_a_normalised_sample_of_the_posterior(folders):
    generator = Generator.read(folders["t2v"])
    moments = wan_window(0)["latents"]
    mean, logvar = moments.chunk(2)
    noise = torch.randn(1, 4, 3, 8, 12, generator=torch.Generator().manual_seed(3))[0]
    expected = mean + (0.5 * logvar).exp() * noise
    shift, scale = (torch.tensor(generator.vae[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    actual = generator.latents(moments, torch.Generator().manual_seed(3))
    torch.testing.assert_close(actual, (expected - shift) / scale)


# --- weights and runs ---------------------------------------------------------------------------------------


def test_the_shift_is_a_key_of_the_recipe(wan_place, tiny_place, tmp_path):
    words = tiny(wan_place, run__output=tmp_path / "run", model__shift=7)
    assert TrainingRun(parse_recipe(["sam2videox", *words])).task.generator.shift == 7
    with pytest.raises(TrainerError, match=r"model\.shift is for flow matching, and cogvideox predicts velocities"):
        TrainingRun(parse_recipe(["sam2videox", *tiny(tiny_place, run__output=tmp_path / "run", model__shift=7)]))


# --- weights --------------------------------------------------------------------------------------------------


def test_all_of_attention_gets_a_lora_but_what_reads_the_image(generator, folders, kind):
    transformer = generator.load_transformer(recipe.Model(path=folders[kind], rank=2))
    changed = [name for name, _ in transformer.named_modules() if name.endswith("lora_A.default")]
    assert len(changed) == 3 * 8 and not any("add_" in name or "embedder" in name for name in changed)


def test_what_must_be_float32_is(generator, folders, kind):
    """As loaded, and in the forward pass, where autocast would make the time embedding bfloat16."""
    transformer = generator.load_transformer(recipe.Model(path=folders[kind], dtype="bfloat16", rank=2))
    kept = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "lora")
    for name, parameter in transformer.named_parameters():
        expected = torch.float32 if any(part in name for part in kept) else torch.bfloat16
        assert parameter.dtype == expected, name
    seen = []
    transformer.condition_embedder.time_embedder.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    hidden, _, conditions, *_ = generator.inputs(samples(generator, 1), torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        transformer(hidden, **conditions)
    assert seen == [torch.float32]


@pytest.mark.parametrize("recipe", ["wan2.1-sam2videox", "wan2.1-moalign"])
def test_recipes_train_and_go_on(wan_place, tmp_path, recipe):
    changes = {"run__output": tmp_path, "training__ema": 0.5, "data__caption_dropout": 0.5}
    assert lgf(["train", recipe, *tiny(wan_place, training__steps=3, **changes)]) == 0
    before = metrics(tmp_path)
    assert len(before) == 3 and all(row["alignment"] > 0 for row in before)
    assert lgf(["train", recipe, *tiny(wan_place, training__steps=3, **changes)]) == 0
    assert metrics(tmp_path) == before


def test_bfloat16_is_close_to_float32(wan_place, tmp_path):
    half = {"model__dtype": "bfloat16", "training__precision": "bf16"}
    for name, changes in {"whole": {}, "half": half}.items():
        lgf(["train", "sam2videox", *tiny(wan_place, training__steps=2, run__output=tmp_path / name, **changes)])
        AcceleratorState._reset_state(reset_partial_state=True)
    for whole, rounded in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "half"), strict=True):
        assert rounded["diffusion"] == pytest.approx(whole["diffusion"], rel=0.05)


def test_image_to_video_extracts_trains_and_samples(folders, tmp_path, capsys):
    """With one command after the other."""
    from support.clips import write_clip

    write_clip(tmp_path / "dog.mp4", frames=14)
    size = ["--frames", "9", "--height", "64", "--width", "96", "--fps", "8"]
    options = ["--teacher", "none", "--stride", "5", *size]
    assert lgf(extraction(tmp_path / "dog.mp4", tmp_path / "cache", folders["i2v"], *options)) == 0
    changes = {"model__path": folders["i2v"], "data__cache": tmp_path / "cache", "run__output": tmp_path / "run"}
    assert lgf(["train", "lora-only", *tiny(tmp_path, training__steps=2, data__image_dropout=0.5, **changes)]) == 0
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "dog.png")
    words = [
        "sample",
        "--model",
        folders["i2v"],
        "--lora",
        tmp_path / "run",
        "--output",
        tmp_path / "out",
        "--steps",
        2,
    ]
    words += ["--prompt", "a dog", "--image", tmp_path / "dog.png"]
    assert lgf([*map(str, words), *size]) == 0
    assert (tmp_path / "out" / "with" / "dog.mp4").exists() and (tmp_path / "out" / "without" / "dog.mp4").exists()


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"transformer_2": ["diffusers", "WanTransformer3DModel"]}, {"boundary_ratio": 0.9}, {"expand_timesteps": True}],
)
def test_wan_2_2_is_refused_by_name(folders, tmp_path, change):
    import shutil

    shutil.copytree(folders["t2v"], tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(
        TrainerError, match=r"is Wan2\.2, which has two transformers .*; Wan2\.1 is what can be trained"
    ):
        Generator.read(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("t2v", {"latents": (4, 3, 8, 12)}, "latent channels 2, and the model needs 4"),
        ("t2v", {"text": (16, 16)}, r"text of shape \(16, 16\), and the model needs \(512, 16\)"),
        ("t2v", {"latents": (8, 3, 8, 11)}, "latents of size 8 x 11, and the model needs multiples of 2"),
        ("i2v", {}, r"an image of shape \(\), and the model needs \(4, 3, 8, 12\)"),
        ("i2v", {"image": (4, 3, 8, 12)}, "an image embedding of width 0, and the model needs 16"),
    ],
)
def test_windows_that_do_not_fit(folders, tmp_path, kind, change, message):
    shapes = {name: torch.Size(tensor.shape) for name, tensor in wan_window(0).items()}
    Generator.read(folders["t2v"]).check_window(shapes, tmp_path)
    with pytest.raises(TrainerError, match=message):
        Generator.read(folders[kind]).check_window(shapes | change, tmp_path)


def test_windows_of_another_family(wan_place, tiny_place, tmp_path):
    for model, cache in ((wan_place, tiny_place), (tiny_place, wan_place)):
        words = tiny(model, data__cache=cache / "cache", run__output=tmp_path / "run")
        with pytest.raises(SystemExit, match=r"and the model needs .*extract"):
            lgf(["train", "sam2videox", *words])
        assert not (tmp_path / "run").exists(), "nothing was loaded or written"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--frames 10 --height 64 --width 96", "frames 1 more than a multiple of 4"),
        ("--frames 9 --height 60 --width 96", "width and height must be multiples of 16"),
    ],
)
def test_sizes_that_cannot_be_sampled(folders, tmp_path, words, message):
    given = ["sample", "--model", folders["t2v"], "--output", str(tmp_path), "--prompt", "a dog", *words.split()]
    with pytest.raises(SystemExit, match=message):
        lgf(given)


def test_caches_of_wan_name_its_rate(folders, tmp_path):
    from support.clips import write_clip

    write_clip(tmp_path / "dog.mp4", frames=14)
    options = ["--teacher", "none", "--frames", 9, "--height", 64, "--width", 96]
    assert lgf(extraction(tmp_path / "dog.mp4", tmp_path / "cache", folders["t2v"], *options)) == 0
    cache = WindowCache(tmp_path / "cache")
    assert cache.settings["fps"] == 16 and cache.settings["grid"] == [9, 4, 6] and SETTINGS["grid"] == [9, 4, 6]
    assert make_cache(tmp_path / "other", windows=1).settings["grid"] == cache.settings["grid"]
