"""The projector, the block capture, and the module that joins them to a transformer."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusers import CogVideoXTransformer3DModel
from lgf_trainer import AlignedTransformer, BlockCapture, Projector
from peft import LoraConfig

FRAMES, HEIGHT, WIDTH, CHANNELS = 3, 4, 6, 32
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def make_transformer() -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=8, num_layers=3, sample_width=2 * WIDTH, sample_height=2 * HEIGHT, sample_frames=FRAMES,
        temporal_compression_ratio=1, max_text_seq_length=2,
    )  # fmt: skip
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False))
    return transformer


def make_model() -> AlignedTransformer:
    transformer = make_transformer()
    return AlignedTransformer(transformer, Projector(CHANNELS, hidden=16, widths=(16, 8), groups=4), block=1)


def inputs() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, FRAMES, 4, 2 * HEIGHT, 2 * WIDTH, generator=rng),
        "encoder_hidden_states": torch.randn(2, 2, 8, generator=rng),
        "timestep": torch.tensor([10, 500]),
    }


def gradients(model: AlignedTransformer) -> dict[str, torch.Tensor]:
    prediction, projected = model(**inputs())
    (prediction.square().mean() + projected.square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("frames", [None, 9])
def test_projector_shapes(frames):
    projector = Projector(12, hidden=16, widths=(8, 8, 4), frames=frames, groups=4)
    assert projector(torch.randn(2, 3, 4, 5, 12)).shape == (2, frames or 3, 4, 5, 4)


def test_projector_is_its_formula():
    projector = Projector(6, hidden=8, widths=(12, 5), groups=4)
    for parameter in projector.parameters():  # those of the norms are 1 and 0, which hides them
        torch.nn.init.normal_(parameter)
    stem, (temporal, norm, _), (first, second_norm, _, last) = projector.stem, projector.temporal, projector.mlp

    def convolved(layer, *neighbours):
        taps = layer.weight[..., 0, 0].unbind(2)
        return sum(torch.einsum("bthwi,oi->bthwo", x, w) for x, w in zip(neighbours, taps, strict=True)) + layer.bias

    def activated(norm, x):
        groups = x.unflatten(-1, (4, -1))
        variance, mean = torch.var_mean(groups, (1, 2, 3, 5), keepdim=True, correction=0)
        return F.silu(((groups - mean) / (variance + norm.eps).sqrt()).flatten(-2) * norm.weight + norm.bias)

    features = torch.randn(2, 3, 4, 5, 6)
    x = convolved(stem, features)
    before, after = F.pad(x, (0, 0) * 3 + (1, 0))[:, :-1], F.pad(x, (0, 0) * 3 + (0, 1))[:, 1:]
    x = x + activated(norm, convolved(temporal, before, x, after))
    x = convolved(last, activated(second_norm, convolved(first, x)))
    torch.testing.assert_close(projector(features), x, rtol=1e-4, atol=1e-4)


def test_projector_of_the_paper():
    projector = Projector(1920, frames=49)
    shapes = [tuple(p.shape[:2]) for n, p in projector.named_parameters() if n.endswith("weight") and p.ndim == 5]
    assert shapes == [(768, 1920), (768, 768), (512, 768), (256, 512), (256, 256)]


def test_interpolation_aligns_latent_frames_with_every_fourth_frame():
    projector = Projector(8, hidden=8, widths=(8,), frames=9, groups=4)
    torch.nn.init.zeros_(projector.temporal[1].weight)  # closes the residual branch, which mixes frames
    features = torch.randn(1, 3, 2, 2, 8)
    long = projector(features)
    projector.frames = None
    short = projector(features)
    torch.testing.assert_close(long[:, ::4], short)
    torch.testing.assert_close(long[:, 2], (short[:, 0] + short[:, 1]) / 2)


def test_a_factor_of_four_gives_each_latent_the_frames_it_was_made_of():
    """Nearest to latent i of 0, 1, 2 are the frames 4i - 3 to 4i: the interpolated value is its own within half a step."""
    projector = Projector(8, hidden=8, widths=(8,), frames=9, groups=4, interpolation="factor", stem="none")
    ramp = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 8, 3, 2, 2)
    times = projector.interpolated(ramp)[0, 0, :, 0, 0]
    assert times.tolist() == [0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875, 2, 2]
    assert projector(torch.randn(1, 3, 2, 2, 8)).shape == (1, 9, 2, 2, 8)
    projector.frames = 12
    with pytest.raises(ValueError, match="makes 9 frames of 3 latents, and 12 are needed"):
        projector(torch.randn(1, 3, 2, 2, 8))


def test_the_projector_to_the_letter():
    """Without a stem the convolution brings the channels down; with a normalised last layer every one has its norm and SiLU."""
    projector = Projector(1920, last="normalised", stem="none")
    shapes = [tuple(p.shape[:2]) for n, p in projector.named_parameters() if n.endswith("weight") and p.ndim == 5]
    assert shapes == [(768, 1920), (512, 768), (256, 512), (256, 256)]
    small = Projector(6, hidden=8, widths=(12, 4), groups=4, last="normalised", stem="none")
    x = torch.randn(2, 3, 4, 5, 6)
    convolution, norm, _, *layers = [*small.temporal, *small.mlp]
    expected = F.silu(norm(convolution(x.permute(0, 4, 1, 2, 3))))
    for layer, its_norm, _ in (layers[:3], layers[3:]):
        expected = F.silu(its_norm(layer(expected)))
    torch.testing.assert_close(small(x), expected.permute(0, 2, 3, 4, 1))


def test_prediction_is_the_transformers_own():
    model = make_model()
    torch.testing.assert_close(model(**inputs())[0], model.transformer(**inputs()).sample, rtol=0, atol=0)


def test_captured_features_are_the_blocks_output_on_the_token_grid():
    model, seen = make_model(), []
    model.transformer.transformer_blocks[1].register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    _, features = model.predict_and_capture(**inputs())
    assert features.shape == (2, FRAMES, HEIGHT, WIDTH, CHANNELS)
    assert torch.equal(features.flatten(1, 3), seen[0])


def test_gradients_under_checkpointing_equal_a_plain_run():
    plain, checkpointed = make_model(), make_model()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.transformer.enable_gradient_checkpointing()
    expected, actual = gradients(plain), gradients(checkpointed)
    assert all(expected[name].abs().sum() > 0 for name in expected if "to_v" in name or "mlp" in name)
    torch.testing.assert_close(actual, expected)


def test_alignment_reaches_the_blocks_up_to_the_aligned_one_only():
    model = make_model()
    model(**inputs())[1].square().mean().backward()
    reached = [any(p.grad is not None for p in block.parameters()) for block in model.transformer.transformer_blocks]
    assert reached == [True, True, False]


def test_capture_keeps_the_first_call_only_and_must_be_armed():
    block = torch.nn.Module()
    block.forward = lambda x: (x, x)
    capture = BlockCapture(block)
    block(torch.zeros(1))
    with pytest.raises(RuntimeError, match="has not run"):
        capture.take()
    capture.arm()
    block(torch.ones(1)), block(torch.full((1,), 2.0))
    assert capture.take() == 1
    with pytest.raises(RuntimeError, match="has not run"):
        capture.take()
    capture.remove()
    capture.arm()
    block(torch.ones(1))
    with pytest.raises(RuntimeError, match="has not run"):
        capture.take()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_projector_whose_truth_is_not_to_be_asked(compiled):
    """A compiled module has a length only if what it compiles has one; an empty `nn.Sequential` is false."""
    projector = Projector(CHANNELS, hidden=16, widths=(16, 8), groups=4)
    module = torch.compile(projector, backend="eager") if compiled else torch.nn.Sequential()
    _, projected = AlignedTransformer(make_transformer(), module, block=1)(**inputs())
    assert projected.shape == (2, FRAMES, HEIGHT, WIDTH, 8 if compiled else CHANNELS)
