"""The student: a tiny, randomly initialised CogVideoX with LoRA, and a linear stand-in for its autoencoder."""

import math

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from lgf_trainer import AlignedTransformer, Projector
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .clips import TOKEN

LATENT_CHANNELS = 16
CELL = TOKEN // 2  # pixels along one side of a latent; the transformer's patches of 2 x 2 latents make a token
WIDTH, HEAD_WIDTH, BLOCKS, ALIGNED_BLOCK = 128, 64, 3, 1
LORA_RANK = 32
TEXT_WIDTH = 16


def encode(video: Tensor) -> Tensor:
    """Return pixels (B, T, 3, 8H, 8W) in [-1, 1] -> latents (B, T, 16, 2H, 2W).

    No trained autoencoder is needed for a demo: the latents are the 16 lowest coefficients of the orthonormal cosine
    transform of each 4 x 4 cell, scaled to roughly unit variance.
    """
    steps = torch.arange(CELL)
    wave = math.sqrt(2 / CELL) * torch.cos(math.pi * (steps + 0.5) * steps[:, None] / CELL)
    wave[0] /= math.sqrt(2)
    order = sorted(((i, j) for i in range(CELL) for j in range(CELL)), key=lambda ij: (sum(ij), ij))
    planes = [torch.outer(wave[i], wave[j]) for i, j in order]
    basis = torch.stack([plane * colour[:, None, None] for plane in planes for colour in torch.eye(3)])
    return 1.4 * conv2d(video.flatten(0, 1), basis[:LATENT_CHANNELS], stride=CELL).unflatten(0, video.shape[:2])


def make_student(seed: int, grid: tuple[int, int, int], projected: int = WIDTH) -> AlignedTransformer:
    """Return a student for `grid` = (T, H, W) tokens: frozen random base, LoRA and projector, a function of the seed.

    Base and LoRA are the same for any number of `projected` channels.
    """
    frames, height, width = grid
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=WIDTH // HEAD_WIDTH,
            attention_head_dim=HEAD_WIDTH,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            time_embed_dim=64,
            text_embed_dim=TEXT_WIDTH,
            num_layers=BLOCKS,
            sample_width=2 * width,
            sample_height=2 * height,
            sample_frames=frames,
            temporal_compression_ratio=1,
            max_text_seq_length=1,
        )
        condition(transformer)
        transformer.requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        transformer.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=targets))
        projector = make_projector(projected)
    return AlignedTransformer(transformer, projector, ALIGNED_BLOCK)


def condition(transformer: CogVideoXTransformer3DModel) -> None:
    """Give random weights what training would have given them, so that attention has something to say.

    Untouched, the residual gates are near zero, which mutes every LoRA update, and attention is nearly uniform. Here
    the gates are open, queries and keys begin equal (tokens attend to their like), and values keep their length.
    """
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            shift_scale_gate = norm.linear.bias.detach().unflatten(0, (6, -1))  # of the video, then of the text
            shift_scale_gate[[2, 5]] = 1.0
        attention = block.attn1
        for linear in (attention.to_q, attention.to_v, attention.to_out[0]):
            nn.init.orthogonal_(linear.weight)
        attention.to_k.load_state_dict(attention.to_q.state_dict())
        nn.init.constant_(attention.norm_q.weight, 2.0)  # queries and keys are normalised: this sharpens attention


def make_projector(channels: int = WIDTH) -> Projector:
    """Return a small projector that starts as a rotation, so that the loss acts on the aligned block from the start."""
    projector = Projector(WIDTH, hidden=WIDTH, widths=(channels,), groups=8)
    for linear in (projector.stem, projector.mlp[-1]):
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(projector.temporal[1].weight)  # SiLU(0) = 0: the residual branch begins closed
    return projector


def make_scheduler() -> CogVideoXDDIMScheduler:
    """Return the noise schedule of CogVideoX-5B."""
    return CogVideoXDDIMScheduler(prediction_type="v_prediction", snr_shift_scale=1.0)


def empty_prompt(clips: int) -> dict[str, Tensor]:
    """Return the transformer's text input for clips that have none."""
    return {"encoder_hidden_states": torch.zeros(clips, 1, TEXT_WIDTH)}
