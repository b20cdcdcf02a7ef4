"""The inputs of CogVideoX against diffusers' own pipelines, and what is refused."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXTransformer3DModel
from lgf_trainer.generators.cogvideox import (
    LatentFormat,
    check_window,
    conditions,
    empty_caption,
    load_noise_schedule,
    load_transformer,
    rotary_embedding,
    token_grid,
)
from lgf_trainer.runtime import recipe
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.tap import AlignedTransformer
from lgf_trainer.testing import make_tiny_pipeline
from trainer.training_data import random_window


def small(**options):
    shape = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, time_embed_dim=8, text_embed_dim=16,
                 max_text_seq_length=16, sample_frames=9, sample_height=8, sample_width=12, in_channels=8,
                 out_channels=4)  # fmt: skip
    return CogVideoXTransformer3DModel(**(shape | options))


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
    transformer = small(**version)

    class Pipeline:
        vae_scale_factor_spatial = 8

    Pipeline.transformer = transformer
    frames, height, width = size
    for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline):
        expected = kind._prepare_rotary_positional_embeddings(
            Pipeline, 8 * height, 8 * width, frames, torch.device("cpu")
        )
        actual = rotary_embedding(transformer, frames, height, width, torch.device("cpu"))
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_version_1_5_runs_on_padded_frames():
    transformer = small(**LATER)
    model = AlignedTransformer(transformer, torch.nn.Identity(), 1)
    moments = random_window(0)["latents"]
    latents = LatentFormat(0.7, 1 / 0.7, 2).video(moments, torch.Generator())[None]
    inputs = conditions(transformer, latents, torch.randn(1, 16, 16))
    assert inputs["ofs"] == 2.0
    prediction, features = model(torch.cat([latents, latents], 2), timestep=torch.tensor([3]), **inputs)
    assert prediction.shape == latents.shape == (1, 4, 4, 8, 12)
    assert features.shape == (1, *token_grid(transformer, moments.shape), 32)


def test_the_older_versions_get_no_more_than_they_know():
    assert conditions(small(), torch.zeros(1, 3, 4, 8, 12), torch.zeros(1, 16, 16)).keys() == {"encoder_hidden_states"}


@pytest.mark.parametrize("image_to_video", [True, False])
def test_latent_format_of_a_pipeline(tmp_path, image_to_video):
    make_tiny_pipeline(tmp_path, image_to_video=image_to_video)
    model = recipe.Model(path=str(tmp_path), rank=2)
    scale = 0.7 if image_to_video else 1.15258426
    assert LatentFormat.of(model, load_transformer(model)) == LatentFormat(scale, scale, 1)
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"invert_scale_latents": false', '"invert_scale_latents": true'))
    assert LatentFormat.of(model, small(**LATER)) == LatentFormat(scale, 1 / scale, 2)
    assert load_noise_schedule(model).config.snr_shift_scale == (1.0 if image_to_video else 3.0)


def test_what_is_trained_is_float32_whatever_the_rest_is(tiny_place):
    transformer = load_transformer(recipe.Model(path=str(tiny_place / "model"), dtype="bfloat16", rank=4))
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    assert all("lora" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert len(trained) == 3 * 4 * 2  # blocks, targets, A and B
    assert {p.dtype for name, p in transformer.named_parameters() if name not in trained} == {torch.bfloat16}
    assert transformer.is_gradient_checkpointing
    assert transformer.transformer_blocks[0].attn1.to_q.scaling["default"] == 128 / 4


def test_the_empty_caption(tiny_place):
    pipeline = CogVideoXPipeline.from_pretrained(tiny_place / "model")
    expected = pipeline._get_t5_prompt_embeds("", max_sequence_length=16)[0]
    actual = empty_caption(recipe.Model(path=str(tiny_place / "model"), dtype="float32"), 16)
    torch.testing.assert_close(actual, expected)


def test_no_model(tmp_path):
    with pytest.raises(
        TrainerError, match=r"CogVideoXTransformer3DModel cannot be loaded from .*/transformer"
    ) as error:
        load_transformer(recipe.Model(path=str(tmp_path)))
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
    check_window(small(**options), shapes, tmp_path)
    changed = {name: torch.Size(shape) for name, shape in (shapes | change).items() if shape is not None}
    with pytest.raises(TrainerError, match=message):
        check_window(small(**options), changed, tmp_path)


def test_other_resolutions_are_fine_without_learned_positions(tmp_path):
    shapes = {name: torch.Size(tensor.shape) for name, tensor in random_window(0).items()}
    check_window(small(), shapes | {"latents": torch.Size((8, 2, 10, 14))}, tmp_path)
