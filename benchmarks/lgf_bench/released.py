"""The released video models of all families and a window of each, by their configurations: neither files nor weights.

A family adds itself by its `own_recipe` and `released` (lgf_trainer/generators).
"""

import inspect
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from lgf_trainer.generators.base import Generator
from lgf_trainer.step import Batch
from torch import Tensor


def models() -> Iterator[tuple[str, Generator]]:
    """Yield the models of all families, by name."""
    for _, family in sorted(Generator.all().items()):
        for name, changes in family.released.items():
            yield name, model(family, name, changes)


def model(family: type[Generator], name: str, changes: dict[str, Any]) -> Generator:
    """Return a model of a family: `changes` are what differs from diffusers' defaults in its transformer's configuration."""
    pipeline = inspect.signature(getattr(diffusers, family.pipelines[0]).__init__)
    vae = _defaults(pipeline.parameters["vae"].annotation)
    config = _defaults(getattr(diffusers, family.transformer)) | changes
    generator = family(name, None, {"_class_name": family.pipelines[0]}, config, vae)
    if family.scheduler:
        generator.schedule = getattr(diffusers, family.scheduler)()
    return generator


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def window(generator: Generator, dtype: torch.dtype, device: str) -> Batch:
    """Return the transformer's inputs for one window of the model's own size, of random numbers.

    Args:
        dtype: of the transformer's weights.
        device: "meta" for the shapes alone.
    """
    stride, pixels = generator.temporal // generator.patch[0], generator.spatial // generator.patch[1]
    size = 1 + (generator.frames - 1) // stride, generator.height // pixels, generator.width // pixels
    rng = torch.Generator().manual_seed(0)
    moments = torch.zeros(2 * generator.config["out_channels"], *size)  # mean 0, deviation 1
    latents = generator.latents(moments, rng)
    sample = {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=rng),
        "timestep": generator.timestep(rng),
    }
    sample |= {name: torch.randn(shape, generator=rng) for name, shape in generator.captions.items()}
    if generator.image_to_video:
        sample |= generator.image({"image": moments[:, :1]}, rng, latents)
    batch = generator.inputs({name: tensor[None] for name, tensor in sample.items()}, dtype)
    return batch._replace(
        hidden=batch.hidden.to(device),
        target=batch.target.to(device),
        conditions={name: _moved(value, device) for name, value in batch.conditions.items()},
        counted=_moved(batch.counted, device),
    )


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value
