"""HunyuanVideo: layers of the LoRA, text, conditions of images, and what is refused."""

import json
import shutil

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from lgf_trainer.commands import parse_recipe
from lgf_trainer.data.samples import TrainingSamples
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.runtime import recipe
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.sample import Sampler
from lgf_trainer.testing import FRAMES
from lgf_trainer.train import TrainingRun
from trainer.generator_cases import CPU, Folders, pipeline_of, random_windows, samples, sampling, window_of
from trainer.training_data import make_cache, random_window, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture
def generator(folders):
    return Generator.read(folders["hunyuan-t2v"])


def layers(generator, **options):
    transformer = generator.load_transformer(recipe.Model(path=generator.path, rank=2, **options))
    ends = ".lora_A.default"
    return [name.removesuffix(ends) for name, _ in transformer.named_modules() if name.endswith(ends)]


def test_the_recipes_lora_is_all_of_attention_but_the_token_refiners(generator):
    found = layers(generator, targets=recipe.read_recipe("hunyuan-sam2videox").model.targets)
    streams, single = (f"{kind}transformer_blocks.0.attn." for kind in ("", "single_"))
    parts = ["to_q", "to_k", "to_v"]
    text = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_out.0"]
    assert {name for name in found if name.startswith(streams)} == {streams + part for part in parts + text}
    assert {name for name in found if name.startswith(single)} == {single + part for part in parts}
    assert len(found) == 8 + 2 * 3
    assert any("token_refiner" in name for name in layers(generator)), "ends of names would hit it"


def test_blocks_of_both_kinds_are_counted_in_order(generator):
    transformer = generator.empty_transformer()
    blocks = generator.blocks(transformer)
    assert len(blocks) == generator.layers == 3
    assert blocks[0] is transformer.transformer_blocks[0] and blocks[1] is transformer.single_transformer_blocks[0]
    assert generator.token_grid(129, 720, 1280) == (33, 45, 80) == generator.token_grid(*own_size(generator))


def own_size(generator):
    return generator.frames, generator.height, generator.width


def test_text_is_the_pipelines_and_zero_behind_the_caption(generator):
    text, pooled, mask = pipeline_of(generator.path).encode_prompt("a dog runs")
    window = window_of(generator.path)
    length = int(mask.sum())
    assert length == len("a dog runs") + 1 and text.shape == (1, 256, 16)
    torch.testing.assert_close(window["text"][:length], text[0, :length])
    assert not window["text"][length:].any() and text[0, length:].any()
    torch.testing.assert_close(window["text_pooled"], pooled[0])
    empty = Encoders(generator, CPU, torch.float32, text_only=True).caption("")
    assert empty["text"].any(1).sum() == 1 and not torch.equal(empty["text_pooled"], pooled[0])


def test_a_dropped_caption_is_dropped_with_its_pooled_text(generator, tmp_path):
    cache = make_cache(tmp_path / "cache", windows=2, window=random_windows(generator))
    empty = {name: torch.ones(shape) for name, shape in generator.captions.items()}
    data = TrainingSamples(cache, generator, (), seed=0, caption_dropout=0.5, no_caption=empty)
    dropped = [[bool(data[number][name].eq(1).all()) for name in ("text", "text_pooled")] for number in range(8)]
    assert {tuple(pair) for pair in dropped} == {(True, True), (False, False)}


def test_guidance_is_told_to_distilled_models_alone(folders, generator):
    assert generator.inputs(samples(generator), torch.float32).conditions["guidance"].tolist() == [1000.0] * 2
    other = Generator.read(folders["hunyuan-i2v"])
    assert "guidance" not in other.inputs(samples(other), torch.float32).conditions


def test_the_image_is_in_the_first_frame_with_a_mask(folders):
    generator = Generator.read(folders["hunyuan-i2v"])
    sample = samples(generator, 1)
    latents, mask = sample["image"][0].split([4, 1])
    assert mask[0, 0].eq(1).all() and not mask[:, 1:].any() and not latents[:, 1:].any() and latents[:, 0].any()
    hidden = generator.inputs(sample, torch.float32).hidden
    assert hidden.shape[1] == 9 == generator.config["in_channels"] and torch.equal(hidden[0, 4:], sample["image"][0])
    assert int(sample["text"].any(-1).sum()) == 288 + len("a dog runs") + 1, "half of LLaVA's tokens of the image"


def test_latents_are_a_scaled_sample_of_the_posterior(generator):
    moments = window_of(generator.path)["latents"]
    mean, logvar = moments.chunk(2)
    noise = torch.randn(1, *mean.shape, generator=torch.Generator().manual_seed(3))[0]
    actual = generator.latents(moments, torch.Generator().manual_seed(3))
    torch.testing.assert_close(actual, 0.476986 * (mean + (0.5 * logvar).exp() * noise))


# --- what is refused ------------------------------------------------------------------------------------------


def test_an_image_in_place_of_the_first_frame(folders, tmp_path):
    shutil.copytree(folders["hunyuan-i2v"], tmp_path / "model")
    path = tmp_path / "model" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_condition_type": "token_replace"}))
    with pytest.raises(TrainerError, match=r"token_replace.* Take hunyuanvideo-community/HunyuanVideo-I2V-33ch"):
        Generator.read(str(tmp_path / "model"))


def test_captions_without_their_image_before_weights_are_read(folders, tmp_path):
    make_cache(tmp_path / "cache", windows=1, window=image_windows(folders["hunyuan-i2v"]))

    def run(case, dropout):
        words = tiny(tmp_path, model__path=folders[f"hunyuan-{case}"], data__caption_dropout=dropout)
        return TrainingRun(parse_recipe(["hunyuan-sam2videox", *words]))

    run("i2v", 0)
    with pytest.raises(TrainerError, match=r"data\.caption_dropout is 0\.1.*together with its image.*Set it to 0"):
        run("i2v", 0.1)


def image_windows(path):
    """`make_cache(window=...)` for the image-to-video model of a folder."""
    own = window_of(path)
    return lambda seed, frames=FRAMES: random_window(seed, frames) | own


def test_a_negative_prompt_before_weights_are_read(generator, tmp_path):
    with pytest.raises(TrainerError, match=r"looks at no negative prompt\. Leave --negative-prompt out"):
        Sampler(sampling(generator.path, tmp_path, negative_prompt="a cat"), CPU, [])
    assert Sampler(sampling(generator.path, tmp_path), CPU, []).guidance == 6.0


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("t2v", {"text_pooled": None}, r"text_pooled of shape \(\), and the model needs \(16,\)"),
        ("t2v", {"text": (16, 16)}, r"text of shape \(16, 16\), and the model needs \(256, 16\)"),
        ("i2v", {"text": (540, 16)}, r"an image of shape \(\), and the model needs \(4, 1, 8, 12\)"),
    ],
)
def test_windows_that_do_not_fit(folders, generator, tmp_path, case, change, message):
    shapes = {name: tensor.shape for name, tensor in random_windows(generator)(0).items()}
    generator.check_window(shapes, tmp_path)
    changed = {name: torch.Size(shape) for name, shape in (shapes | change).items() if shape is not None}
    with pytest.raises(TrainerError, match=message):
        Generator.read(folders[f"hunyuan-{case}"]).check_window(changed, tmp_path)
