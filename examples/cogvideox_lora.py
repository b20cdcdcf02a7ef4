"""LoRA of a CogVideoX text-to-video model with LGF-KL: diffusers, peft and accelerate.

    lgf extract videos.jsonl --model zai-org/CogVideoX-2b --output cache
    accelerate launch examples/cogvideox_lora.py --model zai-org/CogVideoX-2b --cache cache --output lora

The loop is that of diffusers' `examples/cogvideo/train_cogvideox_lora.py`, on cached latents; lines that the alignment adds
are marked `lgf`. `lgf train` does the same with checkpoints, image-to-video and the recipes of the papers.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from diffusers.training_utils import cast_training_params
from lgf_trainer import AlignedTransformer, Projector
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from windows import Windows, forever

import lgf_kernels as lgf


def main() -> None:
    options = parsed_options()
    accelerator = Accelerator(mixed_precision=options.precision)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    dataset = Windows(options.cache)

    transformer = CogVideoXTransformer3DModel.from_pretrained(options.model, subfolder="transformer", torch_dtype=dtype)
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=64, lora_alpha=32, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    transformer.train()
    cast_training_params(transformer)
    schedule = CogVideoXDDIMScheduler.from_pretrained(options.model, subfolder="scheduler")
    scale = AutoencoderKLCogVideoX.load_config(options.model, subfolder="vae")["scaling_factor"]

    channels = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    projector = Projector(channels, frames=dataset.settings["grid"][0])  # lgf
    # lgf: transformer and projector are one module, so that DDP sees one forward that reaches every trained parameter.
    model = AlignedTransformer(transformer, projector, block=options.block)
    criterion = lgf.LocalGramFlowKLLossFromLogits(window=dataset.settings["window"])  # lgf

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(trained, lr=options.rate), DataLoader(dataset, options.batch, shuffle=True)
    )
    for step, batch in zip(range(options.steps), forever(loader), strict=False):
        latents = scale * batch["latents"].transpose(1, 2)  # (B, F, C, h, w)
        noise = torch.randn_like(latents)
        timestep = torch.randint(schedule.config.num_train_timesteps, (len(latents),), device=latents.device)
        # In float32: in bfloat16 the target of the first noise levels is wrong by as much as itself.
        noisy = schedule.add_noise(latents, noise, timestep)
        target = schedule.get_velocity(latents, noise, timestep)
        prediction, projected = model(
            noisy.to(dtype),
            encoder_hidden_states=batch["text"].to(dtype),
            timestep=timestep,
            image_rotary_emb=rotary_embedding(transformer.config, latents),
        )
        diffusion = mse_loss(prediction.float(), target)
        alignment = criterion(projected, [batch["forward"], batch["backward"]])  # lgf
        accelerator.backward(diffusion + options.weight * alignment)  # lgf
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step}: diffusion {diffusion.item():.4f}, alignment {alignment.item():.4f}")
    if accelerator.is_main_process:
        CogVideoXPipeline.save_lora_weights(
            options.output,
            transformer_lora_layers=get_peft_model_state_dict(transformer),
            # Without them alpha is lost, and the LoRA is loaded with another strength.
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )
    accelerator.end_training()


def rotary_embedding(config, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the rotary position embedding of latents (B, F, C, h, w); None for CogVideoX-2B, which has none."""
    if not config.use_rotary_positional_embeddings:
        return None
    frames, _, height, width = latents.shape[1:]
    grid = (height // config.patch_size, width // config.patch_size)
    crop = get_resize_crop_region_for_grid(
        grid, config.sample_width // config.patch_size, config.sample_height // config.patch_size
    )
    return get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, frames, device=latents.device)


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the hub, or folder")
    parser.add_argument("--cache", required=True, type=Path, help="what lgf extract wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder of the LoRA")
    parser.add_argument("--block", type=int, default=17, help="the aligned block, from 0: 17 of 2B's 30, 24 of 5B's 42")
    parser.add_argument("--weight", type=float, default=0.5, help="of the alignment")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
