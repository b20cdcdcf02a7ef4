"""LGF-KL in a trainer with model specifications, as finetrainers has them: the trainer knows nothing of the model.

    python examples/finetrainers_style.py --model zai-org/CogVideoX-2b --cache cache --output lora

Such a trainer optimises, shards and saves what is part of the transformer, so that the projector becomes a part of it. What
an aligned model adds is a specification of its own, `Aligned`, around that of the model; the trainer stays as it is.
"""

import argparse
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from lgf_trainer import BlockCapture, Projector
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from windows import Windows, forever

import lgf_kernels as lgf

Batch = dict[str, Tensor]


class Specification(Protocol):
    """What a trainer must know of a model: how it is loaded, and the loss of a batch."""

    def load(self) -> nn.Module: ...
    def loss(self, transformer: nn.Module, batch: Batch) -> Tensor: ...


class CogVideoX:
    """CogVideoX text-to-video without rotary embeddings (2B), with a LoRA."""

    def __init__(self, model: str):
        self.model = model
        self.schedule = CogVideoXDDIMScheduler.from_pretrained(model, subfolder="scheduler")
        self.scale = AutoencoderKLCogVideoX.load_config(model, subfolder="vae")["scaling_factor"]

    def load(self) -> nn.Module:
        transformer = CogVideoXTransformer3DModel.from_pretrained(self.model, subfolder="transformer")
        transformer.requires_grad_(False)
        transformer.add_adapter(LoraConfig(r=64, lora_alpha=32, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        transformer.train()
        return transformer

    def loss(self, transformer: nn.Module, batch: Batch) -> Tensor:
        latents = self.scale * batch["latents"].transpose(1, 2)
        noise = torch.randn_like(latents)
        timestep = torch.randint(self.schedule.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = self.schedule.add_noise(latents, noise, timestep)
        prediction = transformer(noisy, batch["text"], timestep, return_dict=False)[0]
        return mse_loss(prediction.float(), self.schedule.get_velocity(latents, noise, timestep))


class Aligned:
    """Another specification with LGF-KL between one block and cached teacher logits.

    Args:
        specification: of the model.
        settings: of the cache: the grid of its teacher and the window of its logits.
        block: the aligned block, from 0.
        weight: of the alignment.
    """

    def __init__(self, specification: Specification, settings: dict, block: int, weight: float = 0.5):
        self.specification, self.settings = specification, settings
        self.block, self.weight = block, weight

    def load(self) -> nn.Module:
        transformer = self.specification.load()
        channels = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        transformer.lgf_projector = Projector(channels, frames=self.settings["grid"][0])
        self.capture = BlockCapture(transformer.transformer_blocks[self.block])
        return transformer

    def loss(self, transformer: nn.Module, batch: Batch) -> Tensor:
        self.capture.arm()
        diffusion = self.specification.loss(transformer, batch)
        features = self.capture.take().float().unflatten(1, (-1, *self.settings["grid"][1:]))
        projected = transformer.lgf_projector(features)
        alignment = lgf.lgf_kl_loss_from_logits(
            projected, [batch["forward"], batch["backward"]], window=self.settings["window"]
        )
        print(f"diffusion {diffusion.item():.4f}, alignment {alignment.item():.4f}")
        return diffusion + self.weight * alignment


def train(specification: Specification, loader: DataLoader, steps: int, rate: float, output: Path) -> None:
    """Train what a specification loads, and write what was trained."""
    transformer = specification.load()
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=rate)
    for _, batch in zip(range(steps), forever(loader), strict=False):
        specification.loss(transformer, batch).backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach() for name, p in trained.items()}, output / "trained.safetensors")


def main() -> None:
    options = parsed_options()
    dataset = Windows(options.cache)
    specification = Aligned(CogVideoX(options.model), dataset.settings, options.block)
    loader = DataLoader(dataset, options.batch, shuffle=True)
    train(specification, loader, options.steps, options.rate, options.output)


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the hub, or folder")
    parser.add_argument("--cache", required=True, type=Path, help="what lgf extract wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder of what was trained")
    parser.add_argument("--block", type=int, default=17, help="the aligned block, from 0")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
