"""What CogVideoX asks for: its weights with a LoRA, and its inputs. All versions: 2B, 5B, 5B-I2V and 1.5."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid
from peft import LoraConfig
from torch import Tensor

from ..runtime import recipe
from ..runtime.errors import TrainerError
from ..runtime.hub import pretrained


def load_transformer(model: recipe.Model) -> CogVideoXTransformer3DModel:
    """The transformer, frozen, with a new LoRA in float32."""
    transformer = _load(CogVideoXTransformer3DModel, model, "transformer", dtype=getattr(torch, model.dtype))
    transformer.requires_grad_(False)
    lora = LoraConfig(
        r=model.rank, lora_alpha=model.alpha, lora_dropout=model.dropout, target_modules=list(model.targets)
    )
    try:
        transformer.add_adapter(lora)
    except ValueError as error:
        raise TrainerError(f"model.targets: {error}") from error
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def load_noise_schedule(model: recipe.Model) -> CogVideoXDDIMScheduler:
    """The noise schedule that the model was trained with."""
    return _load(CogVideoXDDIMScheduler, model, "scheduler")


def _load(kind: type, model: recipe.Model, part: str, **options: Any) -> Any:
    return pretrained(kind, model.path, subfolder=part, revision=model.revision, **options)


@torch.no_grad()
def empty_caption(model: recipe.Model, tokens: int) -> Tensor:
    """The T5 embedding (tokens, width) of the empty caption."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = _load(AutoTokenizer, model, "tokenizer")
    encoder = _load(T5EncoderModel, model, "text_encoder", dtype=getattr(torch, model.dtype))
    ids = tokenizer("", padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    return encoder(ids)[0][0].float()


@dataclass(frozen=True)
class LatentFormat:
    """How moments of the VAE become what the transformer is trained on.

    Attributes:
        scale: of the video's latents.
        image_scale: of the image's; 1.5 was trained with its inverse.
        patch_frames: latent frames in one token; the first frame is repeated until there are whole tokens.
    """

    scale: float
    image_scale: float
    patch_frames: int

    @classmethod
    def of(cls, model: recipe.Model, transformer: CogVideoXTransformer3DModel) -> "LatentFormat":
        try:
            vae = AutoencoderKLCogVideoX.load_config(model.path, subfolder="vae", revision=model.revision)
        except OSError as error:
            raise TrainerError(f"{model.path} has no vae/config.json. Set model.path to a whole pipeline") from error
        scale = vae["scaling_factor"]
        return cls(scale, 1 / scale if vae.get("invert_scale_latents") else scale, transformer.config.patch_size_t or 1)

    def video(self, moments: Tensor, rng: torch.Generator) -> Tensor:
        """A sample (F, C, h, w) of the posterior with moments (2C, F, h, w), scaled and padded."""
        latents = self.scale * sample(moments, rng)
        missing = -len(latents) % self.patch_frames
        return torch.cat([latents[:1].expand(missing, -1, -1, -1), latents])

    def image(self, moments: Tensor, rng: torch.Generator, frames: int) -> Tensor:
        """A sample of the image's posterior in the first of `frames` frames, zeros in the others."""
        latents = self.image_scale * sample(moments, rng)
        return torch.cat([latents, latents.new_zeros(frames - 1, *latents.shape[1:])])


def sample(moments: Tensor, rng: torch.Generator) -> Tensor:
    """A sample (F, C, h, w), float32, of the VAE's posterior with moments (2C, F, h, w): mean, then log variance."""
    posterior = DiagonalGaussianDistribution(moments.float()[None])
    return posterior.sample(rng)[0].transpose(0, 1)


def conditions(transformer: CogVideoXTransformer3DModel, latents: Tensor, text: Tensor) -> dict[str, Any]:
    """The transformer's inputs besides (noisy) latents (B, F, C, h, w) and noise step."""
    inputs: dict[str, Any] = {"encoder_hidden_states": text}
    if transformer.config.use_rotary_positional_embeddings:
        frames, _, height, width = latents.shape[1:]
        inputs["image_rotary_emb"] = rotary_embedding(transformer, frames, height, width, latents.device)
    if transformer.config.ofs_embed_dim is not None:
        inputs["ofs"] = latents.new_full((1,), 2.0)  # the only value that 1.5 was trained with
    return inputs


def rotary_embedding(
    transformer: CogVideoXTransformer3DModel, frames: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding for latents of `frames` x `height` x `width`, as the pipelines make it."""
    config = transformer.config
    patch, patch_frames = config.patch_size, config.patch_size_t
    grid, base = (height // patch, width // patch), (config.sample_height // patch, config.sample_width // patch)
    if patch_frames is None:
        crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
        return get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, frames, device=device)
    return get_3d_rotary_pos_embed(
        config.attention_head_dim, None, grid, -(-frames // patch_frames),
        grid_type="slice", max_size=base, device=device,
    )  # fmt: skip


def check_window(transformer: CogVideoXTransformer3DModel, shapes: dict[str, torch.Size], cache: Path) -> None:
    """Refuse windows that the transformer cannot be trained on.

    Raises:
        TrainerError: which says what the windows have, what the model needs, and the way out.
    """
    config = transformer.config
    channels, frames, height, width = shapes["latents"]
    image = config.in_channels != config.out_channels

    def refuse(what: str, have: Any, need: Any, way_out: str) -> None:
        raise TrainerError(f"the windows of {cache} have {what} {have}, and the model needs {need}: {way_out}")

    if channels != 2 * config.out_channels:
        refuse("latent channels", channels // 2, config.out_channels, "extract again with this model")
    if image and "image" not in shapes:
        refuse("latents of", "the video only", "those of its first frame too", "extract for an image-to-video model")
    if tuple(shapes["text"]) != (config.max_text_seq_length, config.text_embed_dim):
        need = (config.max_text_seq_length, config.text_embed_dim)
        refuse("text of shape", tuple(shapes["text"]), need, "extract again with this model")
    if height % config.patch_size or width % config.patch_size:
        refuse("latents of size", f"{height} x {width}", f"multiples of {config.patch_size}", "extract at another size")
    if config.patch_size_t and (height > config.sample_height or width > config.sample_width):
        need = f"at most {config.sample_height} x {config.sample_width}"
        refuse("latents of size", f"{height} x {width}", need, "its rotary embedding ends there. Extract at that size")
    if config.use_learned_positional_embeddings:
        ratio = config.temporal_compression_ratio
        have = (frames * ratio - ratio + 1, height * 8, width * 8)
        need = (config.sample_frames, config.sample_height * 8, config.sample_width * 8)
        if have != need:
            size = "{} frames of {} x {} pixels".format
            refuse("size", size(*have), size(*need), "it learned positions for that size only. Extract at that size")


def token_grid(transformer: CogVideoXTransformer3DModel, latents: torch.Size) -> tuple[int, int, int]:
    """(frames, rows, columns) of tokens for moments of the shape (2C, F, h, w)."""
    config = transformer.config
    frames, height, width = latents[1:]
    return -(-frames // (config.patch_size_t or 1)), height // config.patch_size, width // config.patch_size
