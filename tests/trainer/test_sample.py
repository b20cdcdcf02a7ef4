"""`lgf sample`: the LoRA does what it did in training, videos are made once, mistakes end in one line."""

import functools
import io
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("av")
pytest.importorskip("tyro")

import av
import lgf_cli
import numpy as np
from diffusers import CogVideoXImageToVideoPipeline
from diffusers.training_utils import _collate_lora_metadata
from lgf_trainer.commands import SampleOptions as Options
from lgf_trainer.commands import sample as main
from lgf_trainer.data import export
from lgf_trainer.data.pictures import read_picture
from lgf_trainer.data.prompts import Request, read_list
from lgf_trainer.generators import lora
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.sample import Sampler
from lgf_trainer.testing import FRAMES, HEIGHT, WIDTH, make_tiny_pipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from support.programs import flowing
from trainer.processes import run_two

from lgf_kernels.core import files as files_module

ROOT = Path(__file__).parents[2]
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pipelines, a LoRA, and a picture of other proportions as well as one that fits."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_pipeline(folder / "i2v")
    make_tiny_pipeline(folder / "t2v", image_to_video=False)
    pipeline = with_adapter(folder)
    CogVideoXImageToVideoPipeline.save_lora_weights(
        folder / "lora",
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        **_collate_lora_metadata({"transformer": pipeline.transformer}),
    )
    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "dog.png")
    Image.fromarray(picture[:, :HEIGHT]).save(folder / "square.png")
    return folder


def with_adapter(folder):
    """The image-to-video pipeline with the adapter that is saved as `lora`, as it is in memory while it is trained."""
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(folder / "i2v")
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["to_k", "to_q"], init_lora_weights=False)
    pipeline.transformer.add_adapter(config)
    return pipeline


def options(folder, **changed) -> Options:
    fixed = {"model": str(folder / "i2v"), "output": folder / "unused", "steps": STEPS}
    return Options(**(fixed | changed))


def generate(folder, with_lora: bool, name: str = "dog.png", seed: int = 0, **changed):
    request = Request("dog", "a dog", folder / name if name else None, seed)
    generator = Sampler(options(folder, **changed), torch.device("cpu"), [request])
    generator.load()
    return generator.generate(request, with_lora)


@pytest.fixture(scope="module")
def generated(folder):
    """`generate` in this folder, once for all tests that want the same video."""
    return functools.cache(functools.partial(generate, folder))


def arguments(folder, output, *more: object) -> list[str]:
    given = ["--model", folder / "i2v", "--lora", folder / "lora", "--output", output, "--steps", STEPS, *more]
    return [str(word) for word in given]


def dog(folder) -> list[object]:
    return ["--prompt", "a dog", "--image", folder / "dog.png"]


def small(folder) -> list[object]:
    """From text alone a video may be smaller, and is made faster."""
    return ["--model", folder / "t2v", "--height", 32, "--width", 48, "--prompt", "a dog"]


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is generated ----------------------------------------------------------------------------------------


def test_a_saved_lora_does_what_it_did_in_memory(folder, generated):
    pipeline = with_adapter(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.open(folder / "dog.png")
    fixed = {"num_frames": FRAMES, "num_inference_steps": STEPS, "max_sequence_length": 16, "output_type": "pt"}
    for with_lora in (True, False):
        if not with_lora:
            pipeline.transformer.disable_adapters()
        noise = torch.Generator().manual_seed(0)
        expected = pipeline(image, "a dog", guidance_scale=6.0, generator=noise, **fixed).frames[0]
        actual = generated(with_lora, lora=folder / "lora")
        assert actual.shape == (FRAMES, HEIGHT, WIDTH, 3) and actual.dtype == np.uint8
        assert np.array_equal(actual, (expected * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_both_arms_start_from_one_noise(folder, generated):
    without, trained = (generated(with_lora, lora=folder / "lora") for with_lora in (False, True))
    assert not np.array_equal(without, trained)
    assert np.array_equal(without, generate(folder, True, lora=folder / "lora", lora_weight=0.0))
    assert np.array_equal(without, generated(False))
    assert not np.array_equal(without, generate(folder, False, seed=1))


@pytest.mark.parametrize(
    "changed",
    [{"lora_weight": 0.5}, {"steps": 3}, {"guidance": 1.0}, {"negative_prompt": "cat"}, {"dtype": "bfloat16"}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_option_changes_the_video(folder, generated, changed):
    base = {"lora": folder / "lora"}
    assert not np.array_equal(generated(True, **base), generate(folder, True, **base, **changed))


def test_text_to_video_in_another_size(folder):
    video = generate(folder, False, name="", model=str(folder / "t2v"), frames=17, height=32, width=48)
    assert video.shape == (17, 32, 48, 3) and video.std() > 1


def test_pictures_of_the_videos_proportions_are_resized_and_others_cut_or_distorted_if_asked(folder, generated):
    picture = Image.open(folder / "dog.png")
    picture.resize((3 * WIDTH, 3 * HEIGHT), Image.Resampling.NEAREST).save(folder / "large.png")
    fitting = generate(folder, False, name="large.png")
    assert np.abs(fitting.astype(int) - generated(False)).mean() < 20
    cut = generate(folder, False, name="square.png", fit="crop")
    assert not np.array_equal(cut, generate(folder, False, name="square.png", fit="stretch"))


def test_a_cut_takes_the_middle(folder):
    tall = np.zeros((HEIGHT + 40, WIDTH, 3), np.uint8)
    tall[20:-20] = 200
    Image.fromarray(tall).save(folder / "tall.png")
    request = Request("tall", "", folder / "tall.png", 0)
    maker = Sampler(options(folder, fit="crop"), torch.device("cpu"), [request])
    assert np.array_equal(np.array(maker._first_frame(request.image)), np.full((HEIGHT, WIDTH, 3), 200))


def test_the_first_frame_of_a_video_may_be_the_image(folder):
    frames = np.stack([np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in (200, 20)])
    (folder / "grey.mp4").write_bytes(export.encode_video(frames, 8, {}))
    Image.fromarray(frames[0]).save(folder / "grey.png")
    pixels = np.array(read_picture(folder / "grey.mp4")).astype(int)
    assert np.abs(pixels - frames[0]).max() <= 2


def test_a_picture_is_turned_as_its_camera_says(folder):
    picture = Image.new("RGB", (HEIGHT, WIDTH))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    assert read_picture(folder / "turned.jpg").size == (WIDTH, HEIGHT)


def test_nan_is_reported(folder, monkeypatch):
    decode = CogVideoXImageToVideoPipeline.decode_latents
    monkeypatch.setattr(CogVideoXImageToVideoPipeline, "decode_latents", lambda *a: decode(*a) * torch.nan)
    with pytest.raises(TrainerError, match=r"dog: the model's output is NaN in float32. Try --dtype"):
        generate(folder, False)


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_writes_videos_and_grids(folder, generated, tmp_path):
    assert main(arguments(folder, tmp_path, *dog(folder), "--side-by-side", "--grid-frames", 3)) == 0
    names = ["both/dog.mp4", "grid/dog.png", "with/dog.mp4", "without/dog.mp4"]
    assert sorted(contents(tmp_path)) == names
    arms = {arm: generated(arm == "with", lora=folder / "lora") for arm in ("without", "with")}
    for arm in arms:
        with av.open(str(tmp_path / arm / "dog.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 8, FRAMES)
        written = export.decode_video(tmp_path / arm / "dog.mp4").astype(int)
        distances = {other: np.abs(written - arms[other]).mean() for other in arms}
        assert min(distances, key=distances.get) == arm and distances[arm] < 12
    both = export.decode_video(tmp_path / "both" / "dog.mp4")
    assert both.shape == (FRAMES, HEIGHT, 2 * WIDTH, 3)
    without = export.decode_video(tmp_path / "without" / "dog.mp4").astype(int)
    assert np.abs(both[:, :, :WIDTH] - without).mean() < np.abs(both[:, :, WIDTH:] - without).mean()
    grid = np.array(Image.open(tmp_path / "grid" / "dog.png"))
    assert np.array_equal(grid[16 : 16 + HEIGHT, :WIDTH], without[0])
    assert np.array_equal(grid[16 : 16 + HEIGHT, -WIDTH:], without[-1])
    trained = export.decode_video(tmp_path / "with" / "dog.mp4")
    assert np.array_equal(grid[-HEIGHT:, WIDTH + 4 : 2 * WIDTH + 4], trained[FRAMES // 2])


def test_without_a_lora_there_is_one_row_and_a_lora_without_comparison_another(folder, tmp_path):
    main(["--model", str(folder / "i2v"), "--output", str(tmp_path / "a"), "--steps", "2", *map(str, dog(folder))])
    assert sorted(contents(tmp_path / "a")) == ["grid/dog.png", "without/dog.mp4"]
    main(arguments(folder, tmp_path / "b", *dog(folder), "--no-compare", "--side-by-side"))
    assert sorted(contents(tmp_path / "b")) == ["grid/dog.png", "with/dog.mp4"]
    main(arguments(folder, tmp_path / "a", *dog(folder)))
    assert sorted(contents(tmp_path / "a")) == ["grid/dog.png", "with/dog.mp4", "without/dog.mp4"]
    assert Image.open(tmp_path / "a" / "grid" / "dog.png").height == 2 * Image.open(tmp_path / "b/grid/dog.png").height


def test_an_interrupted_run_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    words = [*small(folder), "--samples", 2]
    main(arguments(folder, tmp_path / "whole", *words))
    generate_one, made = Sampler.generate, []

    def stop_at_the_third(self, request, with_lora, on_step):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(request.name)
        return generate_one(self, request, with_lora, on_step)

    monkeypatch.setattr(Sampler, "generate", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(folder, tmp_path / "parts", *words))
    before = contents(tmp_path / "parts")
    assert sorted(before) == ["grid/video-0.png", "with/video-0.mp4", "without/video-0.mp4"]
    times = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in before}
    made.clear()
    main(arguments(folder, tmp_path / "parts", *words))
    assert made == ["video-1", "video-1"]
    assert all((tmp_path / "parts" / name).stat().st_mtime_ns == time for name, time in times.items())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_grid_that_is_missing_or_old_is_made_without_the_model(folder, tmp_path, monkeypatch):
    main(arguments(folder, tmp_path, *dog(folder)))
    monkeypatch.setattr(Sampler, "load", lambda self: pytest.fail("nothing is to be generated"))
    grid = tmp_path / "grid" / "dog.png"
    expected = grid.read_bytes()
    grid.unlink()
    main(arguments(folder, tmp_path, *dog(folder)))
    assert grid.read_bytes() == expected
    grid.write_bytes(b"of other videos")
    os.utime(grid, ns=(0, 0))
    main(arguments(folder, tmp_path, *dog(folder)))
    assert grid.read_bytes() == expected


def test_videos_that_were_made_otherwise_are_not_taken_for_these(folder, tmp_path):
    main(arguments(folder, tmp_path, *dog(folder)))
    for more, reason in (
        (["--seed", 1], "seed = 0, and this run has 1"),
        (["--guidance", 2.0], "guidance = 6.0, and this run has 2.0"),
        (["--lora-weight", 2.0], "lora_weight = 1.0, and this run has 2.0"),
        (["--fit", "crop"], "fit = 'refuse', and this run has 'crop'"),
    ):
        with pytest.raises(TrainerError, match=f"was made with {reason}"):
            main(arguments(folder, tmp_path, *dog(folder), *more))
    with pytest.raises(TrainerError, match="image = '"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "dog.png")
        main(arguments(folder, tmp_path, "--prompt", "a dog", "--image", tmp_path / "dog.png"))
    (tmp_path / "with" / "dog.mp4").write_bytes(b"something else")
    with pytest.raises(TrainerError, match=r"with/dog\.mp4 was not made by lgf sample"):
        main(arguments(folder, tmp_path, *dog(folder)))


def test_a_full_disk_leaves_no_half_video(folder, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", full)
    with pytest.raises(TrainerError, match="the disk is full"):
        main(arguments(folder, tmp_path, *dog(folder)))
    assert contents(tmp_path) == {}


@pytest.mark.slow  # `test_distributed.py` has it in processes that do more
def test_processes_share_the_prompts(folder, tmp_path):
    """Two that know of each other: each makes its own, none is made twice, and one speaks for both."""
    words = arguments(folder, tmp_path, *dog(folder), "--samples", 3, "--no-compare")
    done = run_two("-m", "lgf_cli", "sample", *words)
    assert done.stdout.splitlines() == [
        "3 videos to generate, 0 are there",
        f"3 videos are in {tmp_path}, and their grids in {tmp_path / 'grid'}",
    ]
    assert sorted(path.name for path in (tmp_path / "grid").iterdir()) == ["dog-0.png", "dog-1.png", "dog-2.png"]
    assert sorted(path.name for path in (tmp_path / "with").iterdir()) == ["dog-0.mp4", "dog-1.mp4", "dog-2.mp4"]


def test_a_grid_shows_no_frame_twice():
    frames = np.random.default_rng(0).integers(0, 255, (3, 8, 10, 3), dtype=np.uint8)
    grids = [Image.open(io.BytesIO(export.frame_grid({"a": frames}, columns))) for columns in (2, 3, 99)]
    assert [grid.size for grid in grids] == [(24, 24), (38, 24), (38, 24)]
    assert np.array_equal(np.array(grids[0])[16:, 14:], frames[2])


def test_samples_have_seeds_of_their_own(folder, tmp_path):
    main(arguments(folder, tmp_path, *small(folder), "--samples", 2, "--seed", 5, "--no-compare"))
    seeds = [export.made_with(tmp_path / "with" / f"video-{k}.mp4")["seed"] for k in (0, 1)]
    assert seeds == [5, 6]


# --- lists of prompts -----------------------------------------------------------------------------------------


def test_a_list_may_be_jsonl_or_tsv(tmp_path):
    rows = [
        {"prompt": "a dog", "image": "pictures/dog.png"},
        {"prompt": '"cat" sat', "image": "cat.png", "name": "tom", "seed": 7},
        {"prompt": "nothing\u2028else"},
    ]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    tsv = tmp_path / "a.tsv"
    lines = [
        "prompt\timage\tname\tseed",
        "a dog\tpictures/dog.png",
        '"cat" sat\tcat.png\ttom\t7',
        "nothing\u2028else\t\t\t",
    ]
    tsv.write_text("\n".join(lines), encoding="utf-8")
    expected = [
        Request("dog", "a dog", tmp_path / "pictures/dog.png", 3),
        Request("tom", '"cat" sat', tmp_path / "cat.png", 7),
    ]
    assert read_list(jsonl, seed=3) == [*expected, Request("0005", "nothing\u2028else", None, 3)]
    assert read_list(tsv, seed=3) == [*expected, Request("0004", "nothing\u2028else", None, 3)]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.txt", "a dog", r"is a \.jsonl or a \.tsv file"),
        ("a.jsonl", "", "has no prompts"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ("a.jsonl", '["a dog"]', r'line 1 is not a JSON object such as \{"prompt"'),
        ("a.jsonl", '{"caption": "a"}', "line 1: unknown caption. There are prompt, image, name, seed"),
        ("a.jsonl", '{"image": "a.png"}', "line 1 has no prompt"),
        ("a.jsonl", '{"prompt": "a", "seed": "x"}', "seed must be a whole number, not 'x'"),
        ("a.jsonl", '{"prompt": "a", "seed": 1.5}', "seed must be a whole number, not 1.5"),
        ("a.jsonl", '{"prompt": "a", "seed": Infinity}', "seed must be a whole number, not inf"),
        ("a.jsonl", '{"prompt": "a", "name": "b\\u0000"}', "cannot be the name of a file"),
        ("a.jsonl", '{"prompt": "a", "name": "../b"}', "'../b' cannot be the name of a file"),
        ("a.jsonl", '{"prompt": "a", "name": "n"}\n{"prompt": "b", "name": "n"}', "entries 1 and 2 would both be called n"),
        ("a.tsv", "prompt\timage\na dog\tb.png\tc", "line 2: unknown field"),
        ("a.tsv", "prompt\timage\n\tb.png", "line 2 has no prompt"),
    ],
)  # fmt: skip
def test_a_bad_list_is_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(TrainerError, match=reason):
        read_list(tmp_path / name, seed=0)


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", '{"prompt": "a dog \\ud83d"}'), ("a.tsv", "prompt\r\na dog ?\r\n")]
)
def test_lists_as_other_programs_write_them(tmp_path, name, text):
    """With a byte order mark, and with half an emoji where a text was cut."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [request.prompt for request in read_list(tmp_path / name, seed=0)] == ["a dog ?"]


def test_a_list_drives_the_command(folder, tmp_path):
    rows = [{"prompt": "a dog", "image": str(folder / "dog.png"), "name": name} for name in ("a", "b")]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(arguments(folder, tmp_path / "out", "--prompts", tmp_path / "list.jsonl"))
    assert sorted(contents(tmp_path / "out")) == [f"{a}/{n}" for a, n in (
        ("grid", "a.png"), ("grid", "b.png"), ("with", "a.mp4"), ("with", "b.mp4"), ("without", "a.mp4"), ("without", "b.mp4")
    )]  # fmt: skip


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--model gone/tiny/model", "gone/tiny/model: no such folder. Give a pipeline's folder, or a name on the hub"),
        ("--model {f}/lora", "is no pipeline: it has no model_index.json"),
        ("--image gone.png", "gone.png cannot be read (No such file or directory)"),
        ("--image {f}/i2v/model_index.json", "is neither a picture nor a video"),
        ("--image {f}/square.png", "square.png is 64 x 64, and the video 96 x 64: other proportions"),
        ("--model {f}/t2v", "makes videos from text only: dog must have no image"),
        ("--lora {f}/i2v", "pytorch_lora_weights.safetensors: no such file"),
        ("--lora {f}/dog.png", "is no safetensors file, or a damaged one"),
        ("--frames 13", "frames 1 more than a multiple of 8"),
        ("--width 100", "width and height must be multiples of 16"),
        ("--frames 17", "has learned positions and makes 9 frames of 96 x 64 only, not 17 of 96 x 64"),
        ("--width 0", "width and height must be multiples of 16"),
        ("--frames -7", "frames 1 more than a multiple of 8"),
        ("--device nonsense", "--device nonsense cannot be used here"),
        ("--device meta:x", "--device meta:x cannot be used here"),
        ("--offload model", "--offload model is for accelerators"),
        ("--samples 0", "--samples must be at least 1, got 0"),
        ("--fps 0", "--fps must be above 0, got 0.0"),
        ("--fps nan", "--fps must be a finite number, got nan"),
        ("--guidance nan", "--guidance must be a finite number, got nan"),
        ("--lora-weight inf", "--lora-weight must be a finite number, got inf"),
        ("--steps 1001", "--steps must be at most 1000, the noise steps of the model, not 1001"),
        ("--seed 9223372036854775807 --samples 2", "dog-1: the seed must fit into 64 bits"),
        ("--output {f}/dog.png", "cannot be written"),
        ("--prompts list.jsonl", "give either --prompts, or --prompt and --image"),
    ],
)
def test_a_mistake_ends_in_one_line(folder, tmp_path, words, reason):
    words = [word.format(f=folder) for word in words.split()]
    given = ["sample", *arguments(folder, tmp_path, *dog(folder), *words)]
    with pytest.raises(SystemExit) as end:
        lgf_cli.main(given)
    assert str(end.value).startswith("lgf sample: ") and reason in str(end.value) and "\n" not in str(end.value)


def test_a_folder_that_cannot_be_written_to_is_noticed_first(folder, monkeypatch):
    monkeypatch.setattr(Sampler, "load", lambda self: pytest.fail("hours would have been lost"))
    with pytest.raises(TrainerError, match=r"dog\.png cannot be written to \(.*\)\. Name a folder"):
        main(arguments(folder, folder / "dog.png", *dog(folder)))


def test_a_folder_is_the_same_however_it_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for model in ("i2v", "./i2v/"):
        main(["--model", model, "--output", str(tmp_path), "--steps", "1", *map(str, dog(folder))])


def test_an_image_or_a_prompt_is_missing(folder, tmp_path):
    with pytest.raises(TrainerError, match="video needs one"):
        main(arguments(folder, tmp_path, "--prompt", "a dog"))
    with pytest.raises(TrainerError, match="give --prompt"):
        main(arguments(folder, tmp_path))


@pytest.mark.parametrize(("width", "fits"), [(WIDTH, True), (WIDTH + 1, True), (WIDTH - 1, True), (WIDTH + 2, False)])
def test_proportions_may_be_off_by_a_pixel(folder, tmp_path, width, fits):
    Image.new("RGB", (width, HEIGHT)).save(tmp_path / "dog.png")
    with nullcontext() if fits else pytest.raises(TrainerError, match="other proportions"):
        Sampler(options(folder), torch.device("cpu"), [Request("dog", "a dog", tmp_path / "dog.png", 0)])


def test_another_kind_of_pipeline_and_a_broken_one(folder, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(TrainerError, match="is a FluxPipeline, and the families that are here are cogvideox"):
        generate(folder, False, model=str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    with pytest.raises(TrainerError, match="cannot be read"):
        generate(folder, False, model=str(tmp_path))
    make_tiny_pipeline(tmp_path / "broken")
    (tmp_path / "broken" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"cannot be loaded from .*broken"):
        generate(folder, False, model=str(tmp_path / "broken"))


def test_a_model_without_a_size_of_its_own(folder, tmp_path):
    make_tiny_pipeline(tmp_path)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config | {"patch_size_t": 2}))
    with pytest.raises(TrainerError, match="give --height and --width, such as 768 and 1360"):
        generate(folder, False, model=str(tmp_path))


def test_the_hub_is_asked_only_for_a_name_and_says_so(folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainerError, match=r"nobody/nothing cannot be read"):
        generate(folder, False, model="nobody/nothing")
    assert "asking the Hugging Face hub" in capsys.readouterr().out


def resaved(folder, tmp_path, weights=None, metadata=None):
    """The LoRA with other weights or another alpha, rank or metadata."""
    source = folder / "lora" / "pytorch_lora_weights.safetensors"
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        old = file.metadata()
    save_file(
        load_file(source) if weights is None else weights,
        tmp_path / "lora.safetensors",
        metadata=old if metadata is None else metadata,
    )
    return tmp_path / "lora.safetensors"


@pytest.mark.parametrize("metadata", [{}, {"lora_adapter_metadata": "{}"}, {"lora_adapter_metadata": "no JSON"}])
def test_a_lora_without_alpha_is_refused(folder, tmp_path, metadata):
    with pytest.raises(TrainerError, match="does not say its alpha, and would be scaled wrongly"):
        generate(folder, True, lora=resaved(folder, tmp_path, metadata={"format": "pt", **metadata}))


def test_alpha_counts(folder, tmp_path):
    text = {"transformer.lora_alpha": 24, "transformer.r": 4, "transformer.target_modules": ["to_k", "to_q"]}
    file = resaved(folder, tmp_path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(text)})
    assert np.array_equal(
        generate(folder, True, lora=file), generate(folder, True, lora=folder / "lora", lora_weight=2.0)
    )


def test_a_lora_of_another_model_is_refused(folder, tmp_path):
    weights = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    first = next(name for name in weights if name.endswith("lora_A.weight"))
    cases = [
        ({name.replace("blocks.2", "blocks.7"): w for name, w in weights.items()}, "has no transformer_blocks.7.attn1"),
        ({n: torch.zeros(4, 48) if "lora_A" in n else w for n, w in weights.items()}, "has 32 channels here, 48 there"),
        ({n: torch.zeros(48, 4) if "lora_B" in n else w for n, w in weights.items()}, "has 32 channels here, 48 there"),
        ({name: w for name, w in weights.items() if name != first}, "holds only B.weight of"),
        ({name.removeprefix("transformer."): w for name, w in weights.items()}, "is no LoRA of a transformer"),
        ({"transformer.transformer_blocks.0.attn1.to_q.weight": torch.zeros(32, 32)}, "is no LoRA of a transformer"),
        ({n: w[:2] if "lora_A" in n else w[:, :2] for n, w in weights.items()}, "metadata and its weights disagree"),
        ({**weights, first: torch.zeros(4)}, r"is no LoRA of a transformer .* of shape \[4\]"),
        ({}, "is empty"),
    ]
    for changed, reason in cases:
        changed = {name: weight.contiguous() for name, weight in changed.items()}
        with pytest.raises(TrainerError, match=reason):
            generate(folder, True, lora=resaved(folder, tmp_path, weights=changed))


def test_a_lora_of_another_model_is_refused_before_any_weight_is_read(folder, tmp_path):
    weights = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    others = resaved(folder, tmp_path, weights={n.replace("blocks.2", "blocks.7"): w for n, w in weights.items()})
    with pytest.raises(TrainerError, match=r"was made for another model: this one has no transformer_blocks\.7"):
        Sampler(options(folder, lora=others), torch.device("cpu"), [])


def test_inputs_and_outputs_of_a_layer_are_told_apart(tmp_path):
    """All layers that CogVideoX's LoRAs usually change are square; a feed-forward layer is not."""
    layers = torch.nn.ModuleDict({"feed": torch.nn.Linear(3, 5)})
    for name, inputs, outputs in (("right", 3, 5), ("wrong", 5, 3)):
        weights = {"A": torch.zeros(2, inputs), "B": torch.zeros(outputs, 2)}
        save_file({f"transformer.feed.lora_{half}.weight": w for half, w in weights.items()}, tmp_path / name)
    lora.must_fit(tmp_path / "right", layers)
    with pytest.raises(TrainerError, match="feed has 3 channels here, 5 there"):
        lora.must_fit(tmp_path / "wrong", layers)


def test_help_teaches_and_bad_words_are_refused(terminal, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = flowing(capsys.readouterr().out)
    assert "lgf sample --model CogVideoX-5b-I2V" in text and "Everything is read from this machine" in text


def test_t2v_class_is_recognised(folder):
    assert (
        Sampler(options(folder, model=str(folder / "t2v")), torch.device("cpu"), []).generator.image_to_video is False
    )
