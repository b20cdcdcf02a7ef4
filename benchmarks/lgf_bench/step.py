"""Share of the loss in the time of a training step: an upper bound of what a faster loss can save.

A step of a video model with a LoRA (random weights, its family's own recipe), forward, backward and optimiser, in interleaved
runs: without alignment, and with the loss from cached teacher logits as eager PyTorch computes it, as `torch.compile` does and
as this library does; and each loss alone, on the same features. What alignment costs beyond the loss is the projector that
feeds it. The arithmetic of a step is counted too, which needs neither weights nor a GPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers.utils import logging
from lgf_cli.errors import UserError
from lgf_trainer.generators.base import Generator, diffusers
from lgf_trainer.generators.cogvideox import CogVideoX
from lgf_trainer.projector import Projector
from lgf_trainer.runtime.recipe import Recipe, build, read_recipe
from lgf_trainer.step import AlignedDiffusion
from lgf_trainer.tap import AlignedTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lgf_kernels.core.registry import resolve

from . import memory, released, results, timing
from .checkout import commit
from .families.base import Loss
from .families.gram_flow import LgfKl
from .measure import progress
from .providers import provider
from .table import TERMINAL, of_step

#: The model for CPUs, and the one whose step is counted beside it.
TINY, PAPER = "CogVideoX-tiny", "CogVideoX-5B"
TINY_CONFIG = {
    "num_attention_heads": 4, "num_layers": 4, "sample_height": 32, "sample_width": 48, "sample_frames": 17,
    "text_embed_dim": 64, "max_text_seq_length": 16,
}  # fmt: skip
TINY_RECIPE = {
    "model": {"dtype": "float32", "rank": 16, "gradient_checkpointing": False},
    "alignment": {"block": 2},
    "projector": {"hidden": 128, "widths": [64], "groups": 8},
}


@dataclass(frozen=True)
class Config:
    """A model, and how it is trained."""

    generator: Generator
    recipe: Recipe

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens over time, height and width."""
        generator = self.generator
        return generator.token_grid(generator.frames, generator.height, generator.width)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.recipe.model.dtype)

    def loss_case(self, device: str) -> LgfKl:
        """Return the loss on the projected features of every frame, from two teachers' cached logits."""
        shape = (1, self.generator.frames, *self.grid[1:], self.recipe.projector.widths[-1])
        return LgfKl(shape, cached=True, dtype=self.recipe.model.dtype, device=device)


def configs() -> dict[str, Config]:
    """Return the model for CPUs and the released ones of all families."""
    tiny = Config(released.model(CogVideoX, TINY, TINY_CONFIG), build(TINY_RECIPE))
    return {TINY: tiny} | {name: Config(it, read_recipe(it.own_recipe)) for name, it in released.models()}


def run(arguments: argparse.Namespace) -> None:
    """Measure and print, and keep the row in the folder that --out names."""
    name, known = arguments.model or TINY, configs()
    if name not in known:
        raise UserError(f"--model is {name!r}; choose from {', '.join(known)}.")
    if name != TINY and arguments.device == "cpu":
        raise UserError(f"step --model {name} needs a GPU: add --device cuda. On a CPU, leave --model out.")
    if arguments.resume and _is_kept(name, arguments.out / results.STEP):
        print(f"{name}: measured before, at this commit")
        return
    row = measured(name, known[name], arguments.device, arguments.rounds)
    row |= counted(*((PAPER, known[PAPER]) if name == TINY else (name, known[name])))
    row |= results.provenance(arguments.device) | {"clock": arguments.clock}
    print(of_step(row, TERMINAL))
    if arguments.out:
        results.append(arguments.out / results.STEP, [row])


def _is_kept(name: str, file: Path) -> bool:
    here = commit()
    return any((row.get("model"), row["commit"]) == (name, here) for row in results.read(file))


class Training:
    """Model, one window and optimiser of a configuration."""

    def __init__(self, config: Config, device: str):
        logging.set_verbosity_error()  # casting is what is wanted here
        generator, recipe = config.generator, config.recipe
        with torch.device(device):
            transformer = generator.to_train(random_transformer(generator, config.dtype), recipe.model)
            options = recipe.projector
            projector = Projector(generator.channels, options.hidden, options.widths, generator.frames, options.groups)
            logits = (1, generator.frames - 1, *config.grid[1:], 49)
            self.cache = [torch.rand(logits).half() for _ in range(2)]
        block = generator.blocks(transformer)[recipe.alignment.block]
        self.plain, self.model = (
            AlignedTransformer(transformer, head, block, generator.grid_of, generator.video_tokens)
            for head in (None, projector)
        )
        self.window = released.window(generator, config.dtype, device)
        kind = "cuda" if torch.device(device).type == "cuda" else "cpu"
        self.autocast = partial(torch.autocast, kind, torch.bfloat16, enabled=config.dtype != torch.float32)
        self.weight = recipe.alignment.weight
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-6)

    def loss(self, align: Loss | None) -> Tensor:
        def aligned(projected: Tensor, _targets: dict[str, Tensor]) -> Tensor:
            return align(student=projected, teachers=self.cache)

        model, objective = (self.plain, None) if align is None else (self.model, aligned)
        diffusion, alignment = AlignedDiffusion(model, objective, self.autocast).losses(self.window)
        return diffusion + self.weight * alignment

    def step(self, align: Loss | None) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(align).backward()
        self.optimiser.step()


def random_transformer(generator: Generator, dtype: torch.dtype) -> nn.Module:
    """Return the transformer with random weights in the types in which diffusers loads them."""
    kind = diffusers(generator.transformer)
    transformer = kind.from_config(generator.config)
    in_float32 = set(kind._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if in_float32.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def measured(name: str, config: Config, device: str, rounds: int) -> dict:
    """Return medians of interleaved steps with each loss and without, and of each loss alone; and the memory of each step."""
    training = Training(config, device)
    case = config.loss_case(device)
    losses = {each: provider(each, case) for each in ("eager", "compile")}
    losses[resolve(case.registry_call(), None, "lgf bench step")] = case.call
    with training.autocast(), torch.no_grad():
        features = torch.randn(1, *config.grid, config.generator.channels, device=device)
        projected = training.model.projector(features)
    projected.requires_grad_()

    def alone(loss: Loss) -> None:
        projected.grad = None
        loss(student=projected, teachers=training.cache).backward()

    steps = {"plain": partial(training.step, None)} | {each: partial(training.step, it) for each, it in losses.items()}
    times = _medians(steps, device, rounds)
    of_loss = _medians({each: partial(alone, it) for each, it in losses.items()}, device, rounds)
    peaks = {}
    for each, action in steps.items():
        training.optimiser.zero_grad(set_to_none=True)
        peaks[each] = memory.rise(action, device)
    rows = {each: {"step_ms": times[each], "peak_bytes": peaks[each]} for each in steps}
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in training.model.transformer.parameters()),
        "tokens": torch.Size(config.grid).numel(),
        "plain": rows.pop("plain"),
        "losses": {each: row | {"loss_ms": of_loss[each]} for each, row in rows.items()},
    }


def _medians(actions: dict[str, Callable], device: str, rounds: int) -> dict[str, float]:
    """Return milliseconds by the host's clock, the device's work included: a step is long enough for that."""
    seconds = {name: [] for name in actions}
    for round_number in progress(range(rounds + 1), "training steps"):
        for name, action in actions.items():
            timing.wait(device)
            start = timing.now()
            action()
            timing.wait(device)
            if round_number:  # the first warms up
                seconds[name].append(timing.now() - start)
    return {name: timing.spread(values)["median_ms"] for name, values in seconds.items()}


def counted(name: str, config: Config) -> dict:
    """Return the FLOP of the products of a step without alignment, recomputation included, and of the loss."""
    in_float32 = replace(config, recipe=replace(config.recipe, model=replace(config.recipe.model, dtype="float32")))
    training = Training(in_float32, "meta")
    with FlopCounterMode(display=False) as counter:
        training.loss(None).backward()
    work = config.loss_case("cpu").work()["both"]
    return {"counted": name, "counted_step_flop": counter.get_total_flops(), "counted_loss_flop": work.flop}
