"""LTX-Video: shift by tokens, normalised latents, tokens that are given, and the rate."""

import inspect
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from diffusers import AutoencoderKLLTXVideo, LTXPipeline
from lgf_trainer.commands import parse_recipe
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.generators.ltx import LTX
from lgf_trainer.runtime import recipe
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.sample import Sampler
from lgf_trainer.step import Batch, _squared_error
from lgf_trainer.train import TrainingRun
from trainer.generator_cases import CPU, Folders, pipeline_of, random_windows, samples, sampling, video, window_of
from trainer.training_data import make_cache, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("ltx"))


@pytest.fixture
def generator(folders):
    return Generator.read(folders["ltx-t2v"])


def test_the_shift_is_the_schedulers_for_the_number_of_tokens(generator):
    scheduler = pipeline_of(generator.path).scheduler
    level = torch.linspace(0.1, 0.9, 5)
    for tokens, mu in ((1024, 0.95), (4096, 2.05), (2560, 1.5)):
        shift = generator.shift_of(tokens)
        expected = scheduler.time_shift(mu, 1.0, level)
        torch.testing.assert_close(shift * level / (1 + (shift - 1) * level), expected)
    sample = samples(generator) | {"timestep": torch.tensor([0.25, 0.5])}
    told = generator.inputs(sample, torch.float32).conditions["timestep"]
    shift = generator.shift_of(72)
    torch.testing.assert_close(told, 1000 * shift * sample["timestep"] / (1 + (shift - 1) * sample["timestep"]))
    generator.shift = 2.0
    assert generator.shift_of(72) == 2.0


def test_so_many_tokens_that_every_noise_level_would_be_1_are_refused(generator, tmp_path):
    generator.shift_of(44000)
    with pytest.raises(TrainerError, match=r"a video of 57728 tokens: .* exp\(21\), and all of them would be 1"):
        Sampler(replace(sampling(generator.path, tmp_path), frames=161, height=512, width=704), CPU, [])


def test_noise_levels_have_a_normal_logit_before_the_shift(generator):
    rng = torch.Generator().manual_seed(0)
    logits = torch.stack([generator.timestep(rng) for _ in range(4000)]).double().logit()
    assert logits.mean().abs() < 0.06 and (logits.std() - 1).abs() < 0.05


def test_cached_moments_give_the_pipelines_normalised_latents(generator):
    """Mean and deviation are among the VAE's weights, so extraction normalises; the log variance, too."""
    encoders = Encoders(generator, CPU, torch.float32)
    vae, raw = encoders.pipeline.vae, encoders.moments(video())
    assert vae.latents_std.unique().numel() == 4
    sampled = generator.latents(raw, torch.Generator().manual_seed(3))[None]
    expected = LTXPipeline._normalize_latents(sampled, vae.latents_mean, vae.latents_std)[0]
    actual = generator.latents(window_of(generator.path)["latents"], torch.Generator().manual_seed(3))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_text_is_the_pipelines_and_zero_behind_the_caption(generator):
    text, mask, *_ = pipeline_of(generator.path).encode_prompt("a dog runs", do_classifier_free_guidance=False)
    ours, length = window_of(generator.path)["text"], int(mask.sum())
    assert ours.shape == (128, 16) and 5 < length < 30 and not ours[length:].any()
    torch.testing.assert_close(ours[:length], text[0, :length])


def test_tokens_of_the_given_frame_are_clean_and_nothing_is_learnt_from_them(folders):
    generator = Generator.read(folders["ltx-i2v"])
    sample, first = samples(generator), 4 * 6
    sample["given"][1] = 0  # the second sample has lost its image
    hidden, target, conditions, _, counted = generator.inputs(sample, torch.float32)
    clean = sample["latents"].flatten(2).transpose(1, 2)
    assert torch.equal(hidden[0, :first], clean[0, :first]) and not torch.equal(hidden[1, :first], clean[1, :first])
    timestep = conditions["timestep"]
    assert (
        not timestep[0, :first].any()
        and timestep[0, first:].unique().numel() == 1
        and timestep[1].unique().numel() == 1
    )
    wrong = torch.zeros_like(target)
    wrong[:, :first] = 3
    assert _squared_error(target + wrong, target, counted) == pytest.approx(9 / 3 / 2)
    assert _squared_error((target + wrong)[:1], target[:1], counted[:1]) == 0


def test_a_loss_over_what_is_counted_is_the_mean_of_its_samples():
    prediction, target = torch.randn(2, 3, 6, 4)
    counted = (torch.arange(6) > 1).float().expand(3, 6)[..., None]
    parts = [_squared_error(prediction[k : k + 1], target[k : k + 1], counted[k : k + 1]) for k in range(3)]
    torch.testing.assert_close(_squared_error(prediction, target, counted), torch.stack(parts).mean())
    torch.testing.assert_close(parts[0], (prediction[0, 2:] - target[0, 2:]).square().mean())
    assert Batch(prediction, target, {}).counted is None


def test_the_rate_is_that_of_the_cache(generator, tmp_path):
    assert generator.inputs(samples(generator), torch.float32).conditions["rope_interpolation_scale"] == (
        4 / 25,
        16,
        16,
    )
    cache = make_cache(tmp_path / "cache", windows=1, window=random_windows(generator))
    settings = cache.folder / "settings.json"
    settings.write_text(settings.read_text().replace("{", '{"fps": 8, ', 1))
    words = tiny(tmp_path, model__path=generator.path)
    told = TrainingRun(parse_recipe(["ltx-sam2videox", *words])).task.generator
    assert told.inputs(samples(told), torch.float32).conditions["rope_interpolation_scale"] == (4 / 8, 16, 16)
    assert told.prompts(None, "a dog", "")["frame_rate"] == 8


def test_compression_is_read_or_follows_from_the_layers(generator):
    defaults = inspect.signature(AutoencoderKLLTXVideo.__init__).parameters.values()
    vae = {one.name: one.default for one in defaults if one.default is not one.empty}
    released = LTX("x", None, generator.index, generator.config, vae)
    assert released.token_grid(161, 512, 704) == (21, 16, 22) and released.decoded == 8
    given = LTX("x", None, generator.index, generator.config, vae | {"spatial_compression_ratio": 16})
    assert given.token_grid(161, 512, 704) == (21, 32, 44)


def test_the_recipes_lora_is_all_of_attention(generator):
    """Eight layers a block: attention within the video, and to the text."""
    targets = recipe.read_recipe("ltx-sam2videox").model.targets
    transformer = generator.load_transformer(recipe.Model(path=generator.path, rank=2, targets=targets))
    ends = ".lora_A.default"
    found = {name.removesuffix(ends) for name, _ in transformer.named_modules() if name.endswith(ends)}
    layers = [f"attn{k}.{part}" for k in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    assert found == {f"transformer_blocks.{block}.{layer}" for block in range(3) for layer in layers}


def test_one_step_of_sampling_is_refused(generator, tmp_path):
    """Its scheduler stretches the noise levels to a last one, which divides by 0."""
    sampler = Sampler(sampling(generator.path, tmp_path, steps=1), CPU, [])
    with pytest.raises(TrainerError, match="--steps must be at least 2"):
        sampler.load()
    Sampler(sampling(generator.path, tmp_path, steps=2), CPU, []).load()
