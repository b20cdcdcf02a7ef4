"""Tiny models of the families with flow matching, and windows, samples and modules for them."""

import functools
import json

import diffusers
import torch
from lgf_trainer import AlignedTransformer, Projector
from lgf_trainer.commands import SampleOptions
from lgf_trainer.generators.base import Encoders, Generator
from lgf_trainer.runtime import recipe
from lgf_trainer.testing import FRAMES, HEIGHT, WIDTH, make_tiny_hunyuan, make_tiny_ltx, make_tiny_wan
from PIL import Image
from trainer.training_data import random_window

CPU = torch.device("cpu")
GRID = (3, 4, 6)
MAKERS = {"wan": make_tiny_wan, "hunyuan": make_tiny_hunyuan, "ltx": make_tiny_ltx}
CASES = [f"{family}-{kind}" for family in MAKERS for kind in ("t2v", "i2v")]


class Folders:
    """Case -> pipeline, made when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder

    @functools.cache  # noqa: B019
    def __getitem__(self, case):
        family, kind = case.split("-")
        return str(MAKERS[family](self.folder / case, image_to_video=kind == "i2v"))


def pipeline_of(path):
    """The pipeline of diffusers that a folder's model_index.json names."""
    with open(f"{path}/model_index.json") as index:
        return getattr(diffusers, json.load(index)["_class_name"]).from_pretrained(path)


def picture():
    """The first frame of `video()`."""
    return Image.fromarray(((video()[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def video(seed=0):
    shape = FRAMES, 3, HEIGHT, WIDTH
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)) / 127.5 - 1


@functools.cache
def window_of(path):
    return Encoders(Generator.read(path), CPU, torch.float32)(video(), "a dog runs", "key")


def samples(generator, count=2):
    """A batch of samples of one window, with noise and noise levels of their own."""
    window, rng, drawn = window_of(generator.path), torch.Generator().manual_seed(1), []
    for _ in range(count):
        latents = generator.latents(window["latents"], rng)
        sample = {"latents": latents, "noise": torch.randn(latents.shape, generator=rng)}
        sample |= {"timestep": generator.timestep(rng)} | {name: window[name] for name in generator.captions}
        drawn.append(sample | (generator.image(window, rng, latents) if generator.image_to_video else {}))
    return {name: torch.stack([sample[name] for sample in drawn]) for name in drawn[0]}


def sampling(path, output, **options):
    """Options of `lgf sample` for a tiny model."""
    size = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    return SampleOptions(model=path, output=output, prompt="a dog", **size, **options)


def model_of(generator, **options):
    settings = {"dtype": "float32", "rank": 4, "alpha": 6, "gradient_checkpointing": False} | options
    torch.manual_seed(0)
    transformer = generator.load_transformer(recipe.Model(path=generator.path, **settings))
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    head = Projector(generator.channels, hidden=16, widths=(16, 8), groups=4)
    return AlignedTransformer(transformer, head, generator.blocks(transformer)[1], generator.grid_of)


def random_windows(generator):
    """`make_cache(window=...)` for a text-to-video model: a random window with latents and text of its shapes."""
    latents, text = window_of(generator.path)["latents"].shape, generator.captions

    def window(seed, frames=FRAMES):
        rng, tensors = torch.Generator().manual_seed(seed), random_window(seed, frames)
        del tensors["image"]
        tensors |= {name: torch.randn(shape, generator=rng) for name, shape in text.items()}
        return tensors | {"latents": torch.randn(latents, generator=rng)}

    return window
