"""The inputs of CogVideoX against diffusers' own pipelines, and what is refused."""

import json

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.generators.cogvideox import CogVideoX, v_prediction
from lgf_trainer.runtime import recipe
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.tap import AlignedTransformer
from lgf_trainer.testing import make_tiny_pipeline
from trainer.training_data import random_window


def transformer_of(**options):
    shape = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, time_embed_dim=8, text_embed_dim=16,
                 max_text_seq_length=16, sample_frames=9, sample_height=8, sample_width=12, in_channels=8,
                 out_channels=4)  # fmt: skip
    return CogVideoXTransformer3DModel(**(shape | options))


def small(transformer=None, vae=(), **options):
    """The model of a transformer's configuration, and of a VAE with 8 x 8 pixels for a latent."""
    config = (transformer or transformer_of(**options)).config
    autoencoder = AutoencoderKLCogVideoX(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    vae = dict(autoencoder.config) | {"scaling_factor": 0.7} | dict(vae)
    generator = CogVideoX("small", None, {"_class_name": "CogVideoXPipeline"}, dict(config), vae)
    generator.schedule = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return generator


LATER = {"patch_size_t": 2, "use_rotary_positional_embeddings": True, "ofs_embed_dim": 8, "patch_bias": False,
         "use_learned_positional_embeddings": False}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "size"),
    [
        (version, size)
        for version in ({"use_rotary_positional_embeddings": True}, LATER)
        for size in ((3, 8, 12), (4, 6, 6))
    ]
    + [({"use_rotary_positional_embeddings": True}, (3, 12, 8))],  # the embedding of 1.5 ends at the model's own size
)
def test_rotary_embedding_is_the_pipelines(version, size):
    transformer = transformer_of(**version)

    class Pipeline:
        vae_scale_factor_spatial = 8

    Pipeline.transformer = transformer
    frames, height, width = size
    for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline):
        expected = kind._prepare_rotary_positional_embeddings(
            Pipeline, 8 * height, 8 * width, frames, torch.device("cpu")
        )
        actual = small(transformer).rotary_embedding(frames, height, width, torch.device("cpu"))
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def sample_of(generator, seed=0):
    window, rng = random_window(seed), torch.Generator()
    latents = generator.latents(window["latents"], rng)[None]
    noise = torch.randn(latents.shape, generator=rng)
    return {"latents": latents, "noise": noise, "timestep": torch.tensor([3]), "text": torch.randn(1, 16, 16)}


def test_version_1_5_runs_on_padded_frames():
    transformer = transformer_of(**LATER)
    generator = small(transformer)
    model = AlignedTransformer(transformer, torch.nn.Identity(), 1)
    sample = sample_of(generator)
    hidden, target, conditions, *_ = generator.inputs(sample | {"image": sample["latents"]}, torch.float32)
    assert conditions["ofs"] == 2.0
    prediction, features = model(hidden, **conditions)
    assert prediction.shape == target.shape == (1, 4, 4, 8, 12)
    assert features.shape == (1, *generator.grid_of_moments(random_window(0)["latents"].shape), 32)
    assert generator.grid_of(hidden.shape, {}) == (2, 4, 6) == model._cogvideox_grid(hidden.shape, {})
    assert generator.frames_of_token(2) == range(9, 17), "a token is two latent frames"


def test_the_older_versions_get_no_more_than_they_know():
    _, _, conditions, *_ = small().inputs(sample_of(small()), torch.float32)
    assert conditions.keys() == {"encoder_hidden_states", "timestep"}


@pytest.mark.parametrize("step", [0, 1, 10, 50])
def test_the_target_is_exact_where_bfloat16_rounds_it_away(step):
    """In bfloat16 the schedulers' own target is wrong by its whole size at noise steps 0 and 1."""
    schedule = small().schedule
    latents, noise = (x.bfloat16() for x in torch.randn(2, 2, 3, 4, 8, 12))
    timestep = torch.full((2,), step)
    alpha = schedule.alphas_cumprod.double()[step]
    x, n = latents.double(), noise.double()
    noisy, velocity = v_prediction(schedule, latents, noise, timestep)
    assert noisy.dtype == velocity.dtype == torch.float32
    torch.testing.assert_close(noisy.double(), alpha.sqrt() * x + (1 - alpha).sqrt() * n, rtol=0, atol=1e-6)
    exact = alpha.sqrt() * n - (1 - alpha).sqrt() * x
    assert (velocity - exact).square().mean() < 1e-10
    naive = schedule.get_velocity(latents, noise, timestep).double()
    assert step > 1 or (naive - exact).square().mean() > 1e-6  # the trap is there


def test_the_image_is_on_the_channels_behind_the_noisy_latents():
    generator = small()
    sample = sample_of(generator) | {"image": torch.randn(1, 3, 4, 8, 12)}
    hidden, target, conditions, *_ = generator.inputs(sample, torch.bfloat16)
    noisy, velocity = v_prediction(generator.schedule, sample["latents"], sample["noise"], sample["timestep"])
    assert torch.equal(hidden, torch.cat([noisy, sample["image"]], 2)) and torch.equal(target, velocity)
    assert conditions["encoder_hidden_states"].dtype == torch.bfloat16 and conditions["timestep"] == 3


@pytest.mark.parametrize("image_to_video", [True, False])
def test_scales_of_a_pipeline(tmp_path, image_to_video):
    make_tiny_pipeline(tmp_path, image_to_video=image_to_video)
    scale = 0.7 if image_to_video else 1.15258426
    generator = Generator.read(str(tmp_path))
    assert (generator.scale, generator.image_scale, generator.patch) == (scale, scale, (1, 2, 2))
    assert generator.schedule.config.snr_shift_scale == (1.0 if image_to_video else 3.0)
    assert generator.image_to_video == image_to_video
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"invert_scale_latents": false', '"invert_scale_latents": true'))
    later = Generator.read(str(tmp_path))
    assert (later.scale, later.image_scale) == (scale, 1 / scale) and small(**LATER).patch == (2, 2, 2)


def test_the_image_has_its_own_scale():
    moments = {"image": random_window(0)["image"]}
    made = []
    for scale in (1.0, 0.5):
        generator = small()
        generator.image_scale = scale
        made.append(generator.image(moments, torch.Generator().manual_seed(0), torch.zeros(2, 4, 8, 12))["image"])
    torch.testing.assert_close(made[0], 2 * made[1])
    assert not made[0][1:].any()


def test_what_a_file_does_not_say_is_diffusers_default(tmp_path):
    """The older models on the hub do not know what came after them."""
    make_tiny_pipeline(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    later = ("patch_size_t", "ofs_embed_dim", "patch_bias")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in later}))
    assert Generator.read(str(tmp_path)).patch == (1, 2, 2)


def test_what_is_trained_is_float32_whatever_the_rest_is(tiny_place):
    model = recipe.Model(path=str(tiny_place / "model"), dtype="bfloat16", rank=4)
    transformer = Generator.read(model.path).load_transformer(model)
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    assert all("lora" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert len(trained) == 3 * 4 * 2  # blocks, targets, A and B
    assert {p.dtype for name, p in transformer.named_parameters() if name not in trained} == {torch.bfloat16}
    assert transformer.is_gradient_checkpointing
    assert transformer.transformer_blocks[0].attn1.to_q.scaling["default"] == 128 / 4


def test_the_empty_caption(tiny_place):
    pipeline = CogVideoXPipeline.from_pretrained(tiny_place / "model")
    expected = pipeline._get_t5_prompt_embeds("", max_sequence_length=16)[0]
    generator = Generator.read(str(tiny_place / "model"))
    actual = Encoders(generator, torch.device("cpu"), torch.float32, text_only=True).caption("")["text"]
    torch.testing.assert_close(actual, expected)


def test_no_model(tmp_path):
    for path, message in (
        (tmp_path, "is no pipeline: it has no model_index.json"),
        ("/nowhere/at/all", "no such folder"),
    ):
        with pytest.raises(TrainerError, match=message) as error:
            Generator.read(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"latents": (4, 3, 8, 12)}, {}, "latent channels 2, and the model needs 4"),
        ({"image": None}, {}, "the video only, and the model needs those of its first frame"),
        ({"text": (16, 8)}, {}, r"text of shape \(16, 8\), and the model needs \(16, 16\)"),
        ({"latents": (8, 3, 8, 11)}, {}, "multiples of 2"),
        ({"latents": (8, 3, 8, 10)}, {"use_learned_positional_embeddings": True, "use_rotary_positional_embeddings": True},
         "size 9 frames of 64 x 80 pixels, and the model needs 9 frames of 64 x 96 pixels: it learned positions"),
        ({"latents": (8, 3, 12, 8)}, LATER, "latents of size 12 x 8, and the model needs at most 8 x 12"),
        ({"latents": (8, 2, 8, 12)}, {"use_learned_positional_embeddings": True, "use_rotary_positional_embeddings": True},
         "size 5 frames of 64 x 96 pixels, and the model needs 9 frames"),
    ],
)  # fmt: skip
def test_windows_that_do_not_fit(change, options, message, tmp_path):
    shapes = {name: torch.Size(tensor.shape) for name, tensor in random_window(0).items()}
    small(**options).check_window(shapes, tmp_path)
    changed = {name: torch.Size(shape) for name, shape in (shapes | change).items() if shape is not None}
    with pytest.raises(TrainerError, match=message):
        small(**options).check_window(changed, tmp_path)


def test_other_resolutions_are_fine_without_learned_positions(tmp_path):
    shapes = {name: torch.Size(tensor.shape) for name, tensor in random_window(0).items()}
    small().check_window(shapes | {"latents": torch.Size((8, 2, 10, 14))}, tmp_path)
