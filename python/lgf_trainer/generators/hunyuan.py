"""HunyuanVideo: text-to-video, and image-to-video with the image on further channels (33 of them)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..runtime.errors import TrainerError
from .base import Encoders, Generator, Inputs, Tensors, posterior_sample
from .flow import STEPS, noise_level, noisy_and_target, shifted

WAY_OUT = "Take HunyuanVideo, such as hunyuanvideo-community/HunyuanVideo"
TEXT_TOKENS = 256  # behind the template; not in any configuration
IMAGE_TOKENS = 576 // 2  # image-to-video: every second one of LLaVA's patches
HEADER_TOKENS = 4  # of the assistant, which image-to-video cuts out of the text
GUIDANCE = 1.0  # what trainers tell the distilled models; sampling tells them 6


class Hunyuan(Generator):
    """Latents (B, C, F, h, w), flow matching, text behind the video tokens; a block returns both, split.

    The embedding of a caption is zero behind its end, which says where that is; CLIP's pooled one comes beside it.
    """

    name = "hunyuan"
    pipelines = ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline")
    transformer = "HunyuanVideoTransformer3DModel"
    refused = dict.fromkeys(
        ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
        f"HunyuanVideo 1.5, whose transformer, VAE and text encoders are others, and which cannot be trained. {WAY_OUT}",
    ) | {
        "HunyuanSkyreelsImageToVideoPipeline": f"SkyReels V1, which cannot be trained. {WAY_OUT}",
        "HunyuanVideoFramepackPipeline": f"FramePack, which makes a video in pieces and cannot be trained. {WAY_OUT}",
    }
    own_recipe = "hunyuan-sam2videox"
    released: ClassVar = {"HunyuanVideo": {}}
    frames, height, width = 129, 720, 1280  # not in any configuration
    fps = 24.0
    shift = 7.0
    negative = False

    def __init__(self, path, revision, index, config, vae):
        super().__init__(path, revision, index, config, vae)
        if config["image_condition_type"] == "token_replace":
            raise TrainerError(
                f"{path} puts the image in place of the first frame (token_replace), which cannot be trained here. "
                "Take hunyuanvideo-community/HunyuanVideo-I2V-33ch, or HunyuanVideo, which is text-to-video"
            )
        self.image_to_video = config["image_condition_type"] == "latent_concat"
        self.caption_alone = not self.image_to_video
        self.patch = (config["patch_size_t"], config["patch_size"], config["patch_size"])
        self.temporal = vae["temporal_compression_ratio"] * self.patch[0]
        self.spatial = vae["spatial_compression_ratio"] * self.patch[1]
        tokens = TEXT_TOKENS + (IMAGE_TOKENS - HEADER_TOKENS if self.image_to_video else 0)
        self.text = (tokens, config["text_embed_dim"])
        self.channels = config["num_attention_heads"] * config["attention_head_dim"]
        self.layers = config["num_layers"] + config["num_single_layers"]
        self.scale = vae["scaling_factor"]

    @property
    def captions(self):
        return super().captions | {"text_pooled": (self.config["pooled_projection_dim"],)}

    def grid_of(self, hidden, conditions):
        return tuple(size // patch for size, patch in zip(hidden[2:], self.patch, strict=True))

    def blocks(self, transformer) -> nn.ModuleList:
        """Return the blocks with two streams, then those with one."""
        return nn.ModuleList([*transformer.transformer_blocks, *transformer.single_transformer_blocks])

    # --- extraction -------------------------------------------------------------------------------------------

    def encode(self, encoders: Encoders, video, caption, seed):
        if not self.image_to_video:
            return super().encode(encoders, video, caption, seed)
        pixels = ((video[0] + 1) * 127.5).round().byte()
        with torch.no_grad():
            text = self._embedded(encoders.pipeline, caption, encoders.device, image=pixels)
        image = encoders.moments(video[:1]).chunk(2)[0]  # the mean, which is the mode that the pipeline takes
        return {"latents": encoders.moments(video), "image": image} | text

    def caption(self, pipeline, caption, device):
        return self._embedded(pipeline, caption, device)

    def _embedded(self, pipeline, caption: str, device: torch.device, **image: Tensor) -> Tensors:
        text, pooled, mask = pipeline.encode_prompt(
            prompt=caption, max_sequence_length=TEXT_TOKENS, device=device, **image
        )
        return {"text": text[0].masked_fill(mask[0, :, None] == 0, 0), "text_pooled": pooled[0]}

    # --- training ---------------------------------------------------------------------------------------------

    def needs(self, shapes):
        yield from super().needs(shapes)
        if self.image_to_video:
            channels, _, *size = shapes["latents"]
            have, need = tuple(shapes.get("image", ())), (channels // 2, 1, *size)
            yield "an image of shape", have, need, "extract again with this model"

    def latents(self, moments, rng):
        return self.scale * posterior_sample(moments, rng)

    def timestep(self, rng):
        return shifted(noise_level(rng), self.shift)

    def image(self, window: Tensors, rng, latents):
        """Return the image's latents and the mask of the frame that is given, zeros in the others."""
        image = self.scale * window["image"].float()
        given = torch.cat([image, torch.ones_like(image[:1])])
        return {"image": torch.cat([given, given.new_zeros(len(given), latents.shape[1] - 1, *given.shape[2:])], dim=1)}

    def inputs(self, sample: Tensors, dtype: torch.dtype) -> Inputs:
        timestep, text = sample["timestep"].float(), sample["text"]
        hidden, target = noisy_and_target(sample["latents"], sample["noise"], timestep)
        if "image" in sample:
            hidden = torch.cat([hidden, sample["image"]], dim=1)
        conditions = {
            "timestep": timestep,
            "encoder_hidden_states": text.to(dtype),
            "encoder_attention_mask": text.any(-1).to(dtype),
            "pooled_projections": sample["text_pooled"].to(dtype),
        }
        if self.config["guidance_embeds"]:
            conditions["guidance"] = torch.full_like(timestep, GUIDANCE * STEPS)
        return Inputs(hidden, target, conditions)

    # --- sampling ---------------------------------------------------------------------------------------------

    def prompts(self, pipeline, prompt, negative):
        return {"prompt": prompt, "max_sequence_length": TEXT_TOKENS}
