"""From a recipe to its parts: model, optimiser, weight of the alignment term, batches."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from .data.cache import WindowCache
from .data.samples import BatchNumbers, TrainingSamples, load_samples, mix
from .generators.cogvideox import LatentFormat, check_window, conditions, empty_caption, load_transformer, token_grid
from .objectives.base import Objective
from .optimiser import GroupedAdamW
from .runtime.errors import TrainerError
from .runtime.files import write_atomically
from .runtime.recipe import Alignment, Recipe
from .step import Batch
from .tap import AlignedTransformer


def make_model(recipe: Recipe, cache: WindowCache, objective: Objective | None) -> AlignedTransformer:
    """The transformer with a new LoRA and a new projector, once it is clear that they fit the cache."""
    torch.manual_seed(mix(recipe.training.seed, "weights"))
    shapes = window_shapes(cache)
    transformer = load_transformer(recipe.model)
    check_window(transformer, shapes, cache.folder)
    block, blocks = recipe.alignment.block, len(transformer.transformer_blocks)
    if block >= blocks:
        raise TrainerError(f"alignment.block is {block}, and the model has blocks 0 to {blocks - 1}")
    projector = None
    if objective:
        _check_targets(objective, shapes, token_grid(transformer, shapes["latents"]), cache)
        config = transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        projector = objective.make_projector(recipe.projector, width, shapes)
    return AlignedTransformer(transformer, projector, block)


def window_shapes(cache: WindowCache) -> dict[str, torch.Size]:
    """The shapes of the tensors of the first window; all others have the same."""
    keys = cache.keys()
    if not keys:
        raise TrainerError(f"{cache.folder} has no windows yet. Fill it with lgf extract")
    return {name: tensor.shape for name, tensor in cache.read(keys[0]).tensors.items()}


def _check_targets(
    objective: Objective, shapes: dict[str, torch.Size], grid: tuple[int, int, int], cache: WindowCache
) -> None:
    for name in objective.tensors:
        if name not in shapes:
            raise TrainerError(
                f"the windows of {cache.folder} have no {name}, which this recipe's alignment reads; they have "
                f"{', '.join(sorted(shapes))}. Extract again with it (lgf extract --help), or choose another alignment"
            )
        shape, given = tuple(shapes[name]), name.startswith("features_")
        if given and len(shape) != 4:
            raise TrainerError(
                f"{name} of {cache.folder} has the shape {shape}: features are (frames, rows, columns, channels)"
            )
        on_grid = all(has <= own if given else has == own for has, own in zip(shape[1:3], grid[1:], strict=True))
        if not on_grid:
            way_out = "average them down to at most that" if given else "extract again with this model"
            raise TrainerError(
                f"{name} of {cache.folder} is on a grid of {shape[1]} x {shape[2]} tokens, and this model's is "
                f"{grid[1]} x {grid[2]}: {way_out}"
            )
    compared = {name: shapes[name][0] for name in objective.tensors}
    if len(set(compared.values())) > 1:
        raise TrainerError(f"{cache.folder} holds {compared} frames, and one projector puts out one number of them")


def make_optimiser(recipe: Recipe, model: AlignedTransformer) -> GroupedAdamW:
    """AdamW over LoRA and projector, each with its schedule."""
    groups = {"lora": ([p for p in model.transformer.parameters() if p.requires_grad], recipe.optimisers.lora)}
    if model.projector is not None:
        groups["projector"] = (model.projector.parameters(), recipe.optimisers.projector)
    return GroupedAdamW(groups, steps=recipe.training.steps, clip=recipe.training.clip)


def weight_schedule(alignment: Alignment) -> Callable[[int], float]:
    """Step -> weight of the alignment term."""
    if alignment.loss == "none":
        return lambda step: 0.0
    if not alignment.schedule:
        return lambda step: alignment.weight
    steps, factors = zip(*alignment.schedule, strict=True)
    return lambda step: alignment.weight * float(np.interp(step, steps, factors))


def read_batches(
    recipe: Recipe,
    cache: WindowCache,
    model: AlignedTransformer,
    objective: Objective | None,
    numbers: BatchNumbers,
    noise_steps: int,
    no_caption: Tensor | None,
    device: torch.device,
) -> Iterator[list[Batch]]:
    """The batches of one process, step by step, on the device; `no_caption` is the embedding of the empty caption."""
    transformer, data = model.transformer, recipe.data
    samples = TrainingSamples(
        cache,
        LatentFormat.of(recipe.model, transformer),
        objective.tensors if objective else (),
        seed=recipe.training.seed,
        noise_steps=noise_steps,
        image_dropout=data.image_dropout if transformer.config.in_channels != transformer.config.out_channels else None,
        caption_dropout=data.caption_dropout,
        empty_caption=no_caption,
    )
    micro_batches = load_samples(samples, numbers, recipe.run.workers, pin=device.type == "cuda")
    for step, sample_list in zip(numbers.steps, micro_batches, strict=True):
        torch.manual_seed(mix(recipe.training.seed, "step", step, numbers.rank))  # for dropout in the LoRA
        yield [_to_batch(sample, transformer, samples.targets, device) for sample in sample_list]


def _to_batch(sample: dict[str, Tensor], transformer: Any, targets: tuple[str, ...], device: torch.device) -> Batch:
    sample = {name: tensor.to(device, non_blocking=True) for name, tensor in sample.items()}
    return Batch(
        latents=sample["latents"],
        noise=sample["noise"],
        timestep=sample["timestep"],
        conditions=conditions(transformer, sample["latents"], sample["text"].to(transformer.dtype)),
        image=sample.get("image"),
        targets={name: sample[name] for name in targets},
    )


def no_caption(recipe: Recipe, model: AlignedTransformer) -> Tensor | None:
    """The embedding of the empty caption, if it is needed; kept with the run, since its encoder is larger than the model."""
    if not recipe.data.caption_dropout:
        return None
    path = recipe.run.output / "empty-caption.safetensors"
    if not path.exists():
        text = empty_caption(recipe.model, model.transformer.config.max_text_seq_length)
        write_atomically(path, save({"text": text}))
    return load(path.read_bytes())["text"]
