"""Share of the loss in the time of a training step: an upper bound of what a faster loss can save.

A step of a CogVideoX with LoRA (random weights), forward, backward and optimiser, in interleaved runs: without alignment, and
with the loss from cached teacher logits as eager PyTorch computes it, as `torch.compile` does and as this library does; and
each loss alone, on the same grid. What alignment costs beyond the loss is the projector that feeds it. The arithmetic of the
5B model's step is counted too, which needs neither its weights nor a GPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.utils import logging
from lgf_cli.errors import UserError
from lgf_trainer import AlignedTransformer, Projector
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode

from lgf_kernels.core.registry import resolve

from . import memory, results, timing
from .families.base import Loss
from .families.gram_flow import LgfKl
from .measure import progress
from .providers import provider
from .table import TERMINAL, of_step

LATENT_CHANNELS, PATCH, HEAD = 16, 2, 64


@dataclass(frozen=True)
class Config:
    """A CogVideoX: its size, its token grid (T, H, W), and the frames that the loss compares."""

    heads: int
    layers: int
    grid: tuple[int, int, int]
    frames: int
    text: tuple[int, int]
    rank: int
    projector: dict
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False

    def loss_case(self, device: str) -> LgfKl:
        """Return the loss on the projected features, from two teachers' cached logits."""
        shape = (1, self.frames, *self.grid[1:], self.projector["widths"][-1])
        return LgfKl(shape, cached=True, dtype=str(self.dtype).removeprefix("torch."), device=device)


CONFIGS = {
    "tiny": Config(4, 4, (5, 16, 24), 5, (16, 64), 16, {"hidden": 128, "widths": (64,), "groups": 8}),
    "5b": Config(
        48, 42, (13, 30, 45), 49, (226, 4096), 256, {"hidden": 768, "widths": (512, 256, 256)}, torch.bfloat16, True
    ),
}  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Measure and print, and keep the row in the folder that --out names."""
    if arguments.config == "5b" and arguments.device == "cpu":
        raise UserError(
            "step --config 5b needs a GPU: add --device cuda. On a CPU its arithmetic is counted, not timed."
        )
    row = measured(arguments.config, arguments.device, arguments.rounds) | counted("5b")
    row |= results.provenance(arguments.device) | {"clock": arguments.clock}
    print(of_step(row, TERMINAL))
    if arguments.out:
        results.append(arguments.out / results.STEP, [row])


class Training:
    """Model, inputs and optimiser of one configuration."""

    def __init__(self, config: Config, device: str):
        logging.set_verbosity_error()  # casting is what is wanted here
        T, H, W = config.grid
        with torch.device(device):
            transformer = CogVideoXTransformer3DModel(
                num_attention_heads=config.heads, attention_head_dim=HEAD, num_layers=config.layers,
                in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
                sample_height=PATCH * H, sample_width=PATCH * W, sample_frames=T, temporal_compression_ratio=1,
                max_text_seq_length=config.text[0], text_embed_dim=config.text[1],
            ).to(config.dtype)  # fmt: skip
            transformer.requires_grad_(False)
            targets = ["to_k", "to_q", "to_v", "to_out.0"]
            transformer.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=targets))
            if config.checkpointing:
                transformer.enable_gradient_checkpointing()
            projector = Projector(HEAD * config.heads, frames=config.frames, **config.projector)
            self.latents = torch.randn(1, T, LATENT_CHANNELS, PATCH * H, PATCH * W, dtype=config.dtype)
            self.target = torch.randn_like(self.latents)
            self.text = torch.randn(1, *config.text, dtype=config.dtype)
            self.timestep = torch.full((1,), 500)
            logits = (1, config.frames - 1, H, W, 49)
            self.cache = [torch.rand(logits).half() for _ in range(2)]
        self.model = AlignedTransformer(transformer, projector, config.layers // 2)
        kind = "cuda" if torch.device(device).type == "cuda" else "cpu"
        self.autocast = torch.autocast(kind, torch.bfloat16, enabled=config.dtype != torch.float32)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-6)

    def loss(self, align: Loss | None) -> Tensor:
        inputs = {"timestep": self.timestep, "encoder_hidden_states": self.text}
        with self.autocast:
            prediction, features = self.model.predict_and_capture(self.latents, **inputs)
            loss = mse_loss(prediction.float(), self.target.float())
            if align is not None:
                loss = loss + 0.5 * align(student=self.model.projector(features), teachers=self.cache)
        return loss

    def step(self, align: Loss | None) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(align).backward()
        self.optimiser.step()


def measured(name: str, device: str, rounds: int) -> dict:
    """Return medians of interleaved steps with each loss and without, and of each loss alone; and the memory of each step."""
    config = CONFIGS[name]
    training = Training(config, device)
    case = config.loss_case(device)
    losses = {each: provider(each, case) for each in ("eager", "compile")}
    losses[resolve(case.registry_call(), None, "lgf bench step")] = case.call
    with training.autocast, torch.no_grad():
        features = torch.randn(1, *config.grid, HEAD * config.heads, device=device)
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
        "config": name,
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


def counted(name: str) -> dict:
    """Return the FLOP of the products of a step without alignment, recomputation included, and of the loss."""
    training = Training(replace(CONFIGS[name], dtype=torch.float32), "meta")
    with FlopCounterMode(display=False) as counter:
        training.loss(None).backward()
    work = CONFIGS[name].loss_case("cpu").work()["both"]
    return {"counted_step_flop": counter.get_total_flops(), "counted_loss_flop": work.flop}
