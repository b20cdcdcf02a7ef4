"""LoRA of a Wan2.1 text-to-video model with LGF-KL: diffusers, peft and plain PyTorch on one device.

    lgf extract videos.jsonl --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --output cache
    python examples/wan_lora.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --cache cache --output lora

Flow matching as Wan2.1 was trained. The features of one block are captured by hand, as one would in a trainer whose model
cannot be wrapped: a `BlockCapture` on the block, and the projector beside the model.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.training_utils import cast_training_params
from lgf_trainer import BlockCapture, Projector
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from windows import Windows, forever

import lgf_kernels as lgf

SHIFT = 3.0  # towards noise, for 480p


def main() -> None:
    options = parsed_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    dataset = Windows(options.cache)

    transformer = WanTransformer3DModel.from_pretrained(options.model, subfolder="transformer", torch_dtype=dtype)
    transformer.requires_grad_(False).to(device)
    transformer.add_adapter(LoraConfig(r=64, lora_alpha=32, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    transformer.train()
    cast_training_params(transformer)
    vae = AutoencoderKLWan.load_config(options.model, subfolder="vae")
    mean, deviation = (torch.tensor(vae[f"latents_{name}"]).view(-1, 1, 1, 1).to(device) for name in ("mean", "std"))

    config = transformer.config
    frames, rows, columns = dataset.settings["grid"]
    capture = BlockCapture(transformer.blocks[options.block])  # lgf
    projector = Projector(config.num_attention_heads * config.attention_head_dim, frames=frames).to(device)  # lgf

    trained = [p for module in (transformer, projector) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.rate)
    loader = DataLoader(dataset, options.batch, shuffle=True)
    for step, batch in zip(range(options.steps), forever(loader), strict=False):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        latents = (batch["latents"] - mean) / deviation  # (B, C, F, h, w)
        noise = torch.randn_like(latents)
        level = torch.randn(len(latents), device=device).sigmoid()
        level = SHIFT * level / (1 + (SHIFT - 1) * level)
        sigma = level.view(-1, 1, 1, 1, 1)
        capture.arm()  # lgf
        # Without autocast, so that the time embedding stays in float32, as in Wan2.1's own pipeline.
        prediction = transformer(
            ((1 - sigma) * latents + sigma * noise).to(dtype),
            timestep=1000 * level,
            encoder_hidden_states=batch["text"].to(dtype),
            return_dict=False,
        )[0]
        projected = projector(capture.take().float().unflatten(1, (-1, rows, columns)))  # lgf
        diffusion = mse_loss(prediction.float(), noise - latents)
        alignment = lgf.lgf_kl_loss_from_logits(  # lgf
            projected, [batch["forward"], batch["backward"]], window=dataset.settings["window"]
        )
        (diffusion + options.weight * alignment).backward()  # lgf
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: diffusion {diffusion.item():.4f}, alignment {alignment.item():.4f}")
    WanPipeline.save_lora_weights(
        options.output,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        # Without them alpha is lost, and the LoRA is loaded with another strength.
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the hub, or folder")
    parser.add_argument("--cache", required=True, type=Path, help="what lgf extract wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder of the LoRA")
    parser.add_argument(
        "--block", type=int, default=17, help="the aligned block, from 0: 17 of 1.3B's 30, 23 of 14B's 40"
    )
    parser.add_argument("--weight", type=float, default=0.5, help="of the alignment")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
