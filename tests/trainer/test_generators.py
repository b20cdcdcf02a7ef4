"""Families with flow matching against diffusers' own pipelines: tokens, inputs, gradients, LoRA."""

import json
import signal

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

import diffusers
from lgf_cli import main as lgf
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.generators.flow import noisy_and_target, shifted
from lgf_trainer.runtime.checkpoint import trained_parameters
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.step import AlignedDiffusion
from lgf_trainer.tap import AlignedTransformer
from lgf_trainer.tasks.diffusion import save_weights
from lgf_trainer.testing import FRAMES, HEIGHT, WIDTH
from PIL import Image
from support.clips import write_clip
from trainer.generator_cases import (
    CASES,
    CPU,
    GRID,
    Folders,
    model_of,
    picture,
    pipeline_of,
    random_windows,
    samples,
    video,
)
from trainer.kill_points import attempt
from trainer.run_outputs import metrics, same, weights
from trainer.training_data import extraction, make_cache, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("families"))


@pytest.fixture(params=CASES)
def generator(folders, request):
    return Generator.read(folders[request.param])


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("case", ["wan-t2v", "hunyuan-t2v", "ltx-t2v"])
def test_tokens_are_in_the_order_of_time_rows_columns(folders, case, axis):
    """What enters the first block depends on one axis alone where the latents do."""
    generator = Generator.read(folders[case])
    model, sample = model_of(generator), samples(generator, 1)
    coordinates = torch.meshgrid(*map(torch.arange, GRID), indexing="ij")[axis].float()
    cell = generator.patch[1:]
    latents = coordinates.repeat_interleave(cell[0], 1).repeat_interleave(cell[1], 2).expand(sample["latents"].shape)
    hidden, _, conditions, *_ = generator.inputs(sample | {"latents": latents, "noise": latents}, torch.float32)
    seen = []
    generator.blocks(model.transformer)[0].register_forward_pre_hook(
        lambda _module, inputs, named: seen.append(named.get("hidden_states", inputs[0] if inputs else None)),
        with_kwargs=True,
    )
    with torch.no_grad():
        features = model.predict_and_capture(hidden, **conditions)[1]
    tokens = seen[0].unflatten(1, GRID)
    assert features.shape == (1, *GRID, 24)
    others = [dim + 1 for dim in range(3) if dim != axis]
    torch.testing.assert_close(tokens, tokens.mean(others, keepdim=True).expand_as(tokens), rtol=1e-4, atol=1e-5)
    assert (tokens - tokens.mean(axis + 1, keepdim=True)).abs().max() > 1e-3


def test_a_batch_is_captured_whole_and_nothing_is_changed(generator):
    """A block returns one tensor, whose item 0 is a sample of the batch, or a pair with the text."""
    model, seen = model_of(generator), []
    generator.blocks(model.transformer)[1].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    hidden, target, conditions, *_ = generator.inputs(samples(generator), torch.float32)
    prediction, features = model.predict_and_capture(hidden, **conditions)
    assert features.shape == (2, *GRID, 24) and prediction.shape == target.shape
    assert torch.equal(features.flatten(1, 3), seen[0]) and not torch.equal(features[0], features[1])
    assert torch.equal(prediction, model.transformer(hidden, **conditions, return_dict=False)[0])


@pytest.mark.parametrize("case", ["wan-t2v", "hunyuan-t2v", "ltx-t2v"])
def test_tokens_stand_for_the_frames_that_the_vae_looks_at(folders, case):
    """Changing a pixel frame moves no latent before its own. Norms that average over all frames are left out."""
    generator = Generator.read(folders[case])
    encoders = Encoders(generator, CPU, torch.float32)
    for module in encoders.pipeline.vae.encoder.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda hidden: hidden
    before = encoders.moments(video())
    for frame in range(FRAMES):
        changed = video()
        changed[frame] *= -1
        moved = (encoders.moments(changed) - before).abs().amax((0, 2, 3)) > 1e-6
        first = int(moved.int().argmax())
        assert moved.any() and frame in generator.frames_of_token(first), frame
    assert [generator.frames_of_token(k) for k in (0, 1, 2)] == [range(1), range(1, 5), range(5, 9)]


# --- inputs ---------------------------------------------------------------------------------------------------


def asked_by_the_pipeline(generator):
    """What diffusers' own pipeline gives its transformer in the first step, and what it answers."""
    pipeline, seen = pipeline_of(generator.path), []
    pipeline.transformer.register_forward_hook(
        lambda _module, _inputs, named, output: seen.append((named, output[0])), with_kwargs=True
    )
    pipeline.set_progress_bar_config(disable=True)
    embeds = {"prompt": "a dog runs", "negative_prompt": None}
    if generator.name == "wan":
        embeds = generator.prompts(pipeline, "a dog runs", "")
    if generator.name == "ltx":
        embeds |= {"frame_rate": generator.fps}
    pipeline(
        **({"image": picture()} if generator.image_to_video else {}), **embeds, height=HEIGHT, width=WIDTH,
        num_frames=FRAMES, num_inference_steps=2, guidance_scale=1.0, max_sequence_length=PROMPT[generator.name],
        generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    return seen[0]


PROMPT = {"wan": 512, "hunyuan": 256, "ltx": 128}


def test_inputs_and_loss_are_those_of_diffusers_own_forward(generator):
    """The pipeline's first step begins with noise; with that noise for latents, too, so does ours at any noise level."""
    asked, answer = asked_by_the_pipeline(generator)
    sample, asked_hidden = samples(generator, 1), asked["hidden_states"]
    channels = sample["latents"].shape[1]
    noise = asked_hidden[:, :channels]
    if generator.name == "ltx":
        noise = asked_hidden.transpose(1, 2).unflatten(2, GRID)
        generator.shift = 1.0
    timestep = asked["timestep"].flatten()[-1:]
    level = timestep / 1000 if generator.name == "ltx" else timestep
    sample |= {"latents": noise, "noise": noise, "timestep": level}
    hidden, target, conditions, _, counted = generator.inputs(sample, torch.float32)
    torch.testing.assert_close(hidden, asked_hidden)
    told = {name for name, value in asked.items() if value is not None}
    assert told - conditions.keys() == {"hidden_states", "return_dict"}
    length = int(sample["text"].any(-1).sum())
    for name, ours in conditions.items():
        theirs = asked[name]
        if name == "encoder_hidden_states":  # behind the caption ours is zero, and masked in both
            ours, theirs = ours[:, :length], theirs[:, :length]
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs.float().reshape(ours.shape), atol=2e-5, rtol=1e-4)
        else:
            assert ours == theirs
    transformer = pipeline_of(generator.path).transformer
    model = AlignedTransformer(transformer, None, generator.blocks(transformer)[0], generator.grid_of)
    with torch.no_grad():
        loss, _ = AlignedDiffusion(model, None).losses(generator.inputs(sample, torch.float32))
    wrong = (answer - target).square()
    if counted is not None:  # the first frame, which is given
        wrong = wrong[:, GRID[1] * GRID[2] :]
        assert not conditions["timestep"][:, : GRID[1] * GRID[2]].any()
    torch.testing.assert_close(loss, wrong.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_flow_matching_is_its_formula_in_float32(sigma):
    x, noise = torch.randn(2, 2, 4, 3, 8, 12)
    hidden, target = noisy_and_target(x.bfloat16(), noise.bfloat16(), torch.full((2,), 1000 * sigma))
    x, noise = (one.bfloat16().double() for one in (x, noise))
    torch.testing.assert_close(hidden.double(), (1 - sigma) * x + sigma * noise, rtol=0, atol=1e-6)
    torch.testing.assert_close(target.double(), noise - x, rtol=0, atol=1e-6)
    assert hidden.dtype == target.dtype == torch.float32


def test_noise_levels_are_a_shifted_logit_normal(folders):
    for case, shift in (("wan-t2v", 3.0), ("hunyuan-t2v", 7.0)):
        generator = Generator.read(folders[case])
        assert generator.shift == shift
        rng = torch.Generator().manual_seed(0)
        sigma = torch.stack([generator.timestep(rng) for _ in range(4000)]).double() / 1000
        logits = (sigma / (shift - (shift - 1) * sigma)).logit()  # the shift undone
        assert logits.mean().abs() < 0.06 and (logits.std() - 1).abs() < 0.05
    assert shifted(torch.tensor(0.5), 3.0) == 750


# --- gradients and weights ------------------------------------------------------------------------------------


def test_gradients_under_checkpointing_equal_a_plain_run(generator):
    inputs = generator.inputs(samples(generator), torch.float32)

    def gradients(checkpointing):
        model = model_of(generator, gradient_checkpointing=checkpointing)
        prediction, projected = model(inputs.hidden, **inputs.conditions)
        ((prediction - inputs.target).square().mean() + projected.square().mean()).backward()
        return {name: p.grad for name, p in trained_parameters(model).items()}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) > 20 and all(gradient.abs().sum() > 0 for gradient in plain.values())
    torch.testing.assert_close(checkpointed, plain)


def test_diffusers_loads_exactly_what_was_trained(generator, tmp_path):
    model = model_of(generator)
    save_weights(tmp_path, generator, model, trained_parameters(model))
    hidden, _, conditions, *_ = generator.inputs(samples(generator), torch.float32)
    pipeline = pipeline_of(generator.path)
    with torch.no_grad():
        before = pipeline.transformer(hidden, **conditions, return_dict=False)[0]
        pipeline.load_lora_weights(tmp_path)
        trained = model.transformer(hidden, **conditions, return_dict=False)[0]
        assert torch.equal(pipeline.transformer(hidden, **conditions, return_dict=False)[0], trained)
    assert not torch.allclose(before, trained, atol=1e-3)


# --- commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["hunyuan", "ltx"])
def test_recipes_train_are_killed_and_go_on(folders, family, tmp_path):
    """Wan's are in test_wan.py; what a run is told of the rate is that of its cache."""
    generator = Generator.read(folders[f"{family}-t2v"])
    make_cache(tmp_path / "cache", windows=3, window=random_windows(generator))

    def words(output):
        changes = {"model__path": generator.path, "run__output": tmp_path / output, "data__caption_dropout": 0.5}
        return ["train", generator.own_recipe, *tiny(tmp_path, training__steps=3, **changes)]

    assert lgf(words("whole")) == 0
    assert all(row["alignment"] > 0 for row in metrics(tmp_path / "whole"))
    assert attempt(words("killed"), "after the second checkpoint") == {"ended": -signal.SIGKILL, "steps": 2}
    assert lgf(words("killed")) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.parametrize("case", ["hunyuan-t2v", "hunyuan-i2v", "ltx-t2v", "ltx-i2v"])
def test_one_command_after_the_other(folders, case, tmp_path):
    """Extraction, training in bfloat16, sampling."""
    generator = Generator.read(folders[case])
    write_clip(tmp_path / "dog.mp4", frames=14)
    size = ["--frames", "9", "--height", "64", "--width", "96", "--fps", "8"]
    options = ["--teacher", "none", "--stride", "5", *size]
    assert lgf(extraction(tmp_path / "dog.mp4", tmp_path / "cache", generator.path, *options)) == 0
    changes = {"model__path": generator.path, "run__output": tmp_path / "run", "data__image_dropout": 0.5}
    changes |= {"model__dtype": "bfloat16", "training__precision": "bf16"}
    assert lgf(["train", "lora-only", *tiny(tmp_path, training__steps=2, **changes)]) == 0
    assert torch.tensor([row["diffusion"] for row in metrics(tmp_path / "run")]).isfinite().all()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "dog.png")
    image = ["--image", tmp_path / "dog.png"] if generator.image_to_video else []
    words = ["--model", generator.path, "--lora", tmp_path / "run", "--output", tmp_path / "out", "--steps", 2]
    assert lgf(["sample", *map(str, [*words, "--prompt", "a dog", *image]), *size]) == 0
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.mp4")} == {"with", "without"}


# --- what is refused ------------------------------------------------------------------------------------------


NEAR = {
    "HunyuanVideo15Pipeline": r"is HunyuanVideo 1\.5, .* Take HunyuanVideo",
    "HunyuanVideoFramepackPipeline": "is FramePack, .* Take HunyuanVideo",
    "LTXConditionPipeline": r"is LTX-Video 0\.9\.5 or later .* Take LTX-Video of 2B",
    "LTX2Pipeline": "is LTX-2, .* Take LTX-Video of 2B",
    "WanVACEPipeline": r"is a Wan pipeline for another use, .* Take Wan2\.1",
    "SkyReelsV2Pipeline": r"is SkyReels V2, .* Take Wan2\.1",
    "CogVideoXVideoToVideoPipeline": "is a CogVideoX pipeline for another use.* CogVideoXImageToVideoPipeline",
    "MochiPipeline": r"is a MochiPipeline, and the families that are here are (.*(hunyuan|ltx|wan) \(){3}",
}


@pytest.mark.parametrize("name", NEAR)
def test_what_is_near_is_refused_by_name_with_a_way_out(name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(TrainerError, match=NEAR[name]) as error:
        Generator.read(str(tmp_path))
    assert "\n" not in str(error.value)
    assert name in dir(diffusers), "diffusers calls it so"  # imported, it may need a newer transformers
