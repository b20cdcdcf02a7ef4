"""LGF-KL in PyTorch Lightning: the alignment is a part of the module, and Lightning has the loop.

    pip install lightning
    python examples/lightning_module.py --model zai-org/CogVideoX-2b --cache cache --output runs

`AlignedVideo` takes any transformer that `AlignedTransformer` does, and any function that turns a batch into the
transformer's inputs and its target. Lightning's own checkpoints hold the projector with the LoRA.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from lgf_trainer import AlignedTransformer, Projector
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from windows import Windows

import lgf_kernels as lgf

Inputs = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], Tensor]]


class AlignedVideo(lightning.LightningModule):
    """Diffusion with LGF-KL to cached teacher logits.

    Args:
        model: transformer and projector.
        inputs: batch -> (arguments of the transformer, target of its prediction).
        criterion: (projected, teacher logits) -> loss.
        weight: of the alignment.
    """

    def __init__(self, model: AlignedTransformer, inputs: Inputs, criterion: nn.Module, weight: float, rate: float):
        super().__init__()
        self.model, self.inputs, self.criterion = model, inputs, criterion
        self.weight, self.rate = weight, rate

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        conditions, target = self.inputs(batch)
        prediction, projected = self.model(**conditions)
        diffusion = mse_loss(prediction.float(), target)
        alignment = self.criterion(projected, [batch["forward"], batch["backward"]])
        self.log_dict({"diffusion": diffusion, "alignment": alignment}, prog_bar=True)
        return diffusion + self.weight * alignment

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.rate)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep what is trained; the frozen weights are those of the published model."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in trained}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = self.state_dict() | checkpoint["state_dict"]


def main() -> None:
    options = parsed_options()
    dataset = Windows(options.cache)
    transformer = CogVideoXTransformer3DModel.from_pretrained(options.model, subfolder="transformer")
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=64, lora_alpha=32, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    transformer.train()
    if transformer.config.use_rotary_positional_embeddings:
        raise SystemExit(f"{options.model} needs rotary embeddings: take `rotary_embedding` of cogvideox_lora.py")
    schedule = CogVideoXDDIMScheduler.from_pretrained(options.model, subfolder="scheduler")
    scale = AutoencoderKLCogVideoX.load_config(options.model, subfolder="vae")["scaling_factor"]

    def inputs(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        latents = scale * batch["latents"].transpose(1, 2)
        noise = torch.randn_like(latents)
        timestep = torch.randint(schedule.config.num_train_timesteps, (len(latents),), device=latents.device)
        conditions = {"encoder_hidden_states": batch["text"], "timestep": timestep}
        noisy = schedule.add_noise(latents, noise, timestep)
        return {"hidden_states": noisy, **conditions}, schedule.get_velocity(latents, noise, timestep)

    channels = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    projector = Projector(channels, frames=dataset.settings["grid"][0])
    criterion = lgf.LocalGramFlowKLLossFromLogits(window=dataset.settings["window"])
    module = AlignedVideo(
        AlignedTransformer(transformer, projector, block=options.block),
        inputs,
        criterion,
        weight=0.5,
        rate=options.rate,
    )
    trainer = lightning.Trainer(
        max_steps=options.steps,
        precision=options.precision,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        default_root_dir=options.output,
    )
    trainer.fit(module, DataLoader(dataset, options.batch, shuffle=True))
    print({name: round(value.item(), 4) for name, value in trainer.logged_metrics.items()})


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the hub, or folder")
    parser.add_argument("--cache", required=True, type=Path, help="what lgf extract wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder of Lightning's logs and checkpoints")
    parser.add_argument("--block", type=int, default=17, help="the aligned block, from 0")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", default="bf16-mixed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
