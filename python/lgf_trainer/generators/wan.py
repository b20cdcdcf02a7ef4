"""Wan2.1: text-to-video of 1.3B and 14B, image-to-video of 14B."""

from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..runtime.errors import TrainerError
from .base import Encoders, Generator, Inputs, Tensors, posterior_sample
from .flow import noise_level, noisy_and_target, shifted

TEXT_TOKENS = 512  # not in any configuration
WAY_OUT = "Take Wan2.1, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


class Wan(Generator):
    """Latents (B, C, F, h, w), flow matching, text by cross attention: a block returns the video tokens alone."""

    name = "wan"
    pipelines = ("WanPipeline", "WanImageToVideoPipeline")
    transformer = "WanTransformer3DModel"
    refused = dict.fromkeys(
        ("WanVideoToVideoPipeline", "WanVACEPipeline", "WanAnimatePipeline"),
        f"a Wan pipeline for another use, which cannot be trained. {WAY_OUT}",
    ) | dict.fromkeys(
        (
            "SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline",
            "SkyReelsV2DiffusionForcingImageToVideoPipeline", "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        ),
        f"SkyReels V2, which has a noise level for each frame and cannot be trained. {WAY_OUT}",
    )  # fmt: skip
    own_recipe = "wan2.1-sam2videox"
    released: ClassVar = {
        "Wan2.1-T2V-1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        "Wan2.1-T2V-14B": {},
    }
    frames, height, width = 81, 480, 832  # not in any configuration either
    fps = 16.0
    guidance = 5.0
    shift = 3.0

    def __init__(self, path, revision, index, config, vae):
        super().__init__(path, revision, index, config, vae)
        second = index.get("transformer_2") or [None]
        if second[0] is not None or index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            raise TrainerError(
                f"{path} is Wan2.2, which has two transformers or a noise level for each token; Wan2.1 is what can be trained. "
                f"{WAY_OUT}"
            )
        self.patch = tuple(config["patch_size"])
        self.image_to_video = config["in_channels"] != config["out_channels"]
        self.stride = vae["scale_factor_temporal"]  # pixel frames for a frame of latents
        self.temporal = self.stride * self.patch[0]
        self.spatial = vae["scale_factor_spatial"] * self.patch[1]
        self.text = (TEXT_TOKENS, config["text_dim"])
        self.channels = config["num_attention_heads"] * config["attention_head_dim"]
        self.layers = config["num_layers"]

    def grid_of(self, hidden, conditions):
        return tuple(size // patch for size, patch in zip(hidden[2:], self.patch, strict=True))

    def blocks(self, transformer) -> nn.ModuleList:
        return transformer.blocks

    def to_train(self, transformer, model):
        """Keep the time embedding in float32, as diffusers does, under autocast too."""
        transformer = super().to_train(transformer, model)
        embedder = transformer.condition_embedder.time_embedder
        forward = embedder.forward

        def in_float32(sample: Tensor) -> Tensor:
            # On "meta", where only shapes are wanted, torch has no autocast.
            with nullcontext() if sample.is_meta else torch.autocast(sample.device.type, enabled=False):
                return forward(sample)

        embedder.forward = in_float32
        return transformer

    # --- extraction -------------------------------------------------------------------------------------------

    def encode(self, encoders: Encoders, video, caption, seed):
        tensors = super().encode(encoders, video, caption, seed)
        if self.image_to_video:
            grey = torch.cat([video[:1], torch.zeros_like(video[1:])])
            tensors["image"] = encoders.moments(grey).chunk(2)[0]  # the mean, which is the mode that the pipeline takes
        if self.config["image_dim"]:
            pixels = ((video[0] + 1) * 127.5).round().byte()
            with torch.no_grad():
                embedded = encoders.pipeline.encode_image(pixels, encoders.device)[0]
            tensors["image_embedding"] = embedded.to(encoders.dtype)
        return tensors

    def embed(self, pipeline, caption, device):
        """Return UMT5's embedding, zeros behind the caption: no mask tells the transformer where it ends."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # image-to-video's needs ftfy

        words = pipeline.tokenizer(
            [prompt_clean(caption)], padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(device)
        embedding = pipeline.text_encoder(words.input_ids, words.attention_mask).last_hidden_state[0]
        return embedding.masked_fill(words.attention_mask[0, :, None] == 0, 0)

    # --- training ---------------------------------------------------------------------------------------------

    def needs(self, shapes):
        yield from super().needs(shapes)
        channels, *size = shapes["latents"]
        again = "extract again with this model"
        if self.image_to_video:
            yield "an image of shape", tuple(shapes.get("image", ())), (channels // 2, *size), again
        if self.config["image_dim"]:
            have = shapes.get("image_embedding", [0])[-1]
            yield "an image embedding of width", have, self.config["image_dim"], again

    def latents(self, moments, rng):
        """Return latents (C, F, h, w), of mean 0 and deviation 1."""
        return self._normalised(posterior_sample(moments, rng))

    def timestep(self, rng):
        return shifted(noise_level(rng), self.shift)

    def image(self, window: Tensors, rng, latents):
        """Return the mask of the given frame on a channel for each of its pixel frames, and the grey-padded clip's latents."""
        condition = self._normalised(window["image"].float())
        mask = condition.new_zeros(self.stride, *condition.shape[1:])
        mask[:, 0] = 1
        image = {"image": torch.cat([mask, condition])}
        if self.config["image_dim"]:
            image["image_embedding"] = window["image_embedding"].float()
        return image

    def inputs(self, sample: Tensors, dtype: torch.dtype) -> Inputs:
        timestep = sample["timestep"].float()
        hidden, target = noisy_and_target(sample["latents"], sample["noise"], timestep)
        conditions = {"timestep": timestep, "encoder_hidden_states": sample["text"].to(dtype)}
        if "image" in sample:
            hidden = torch.cat([hidden, sample["image"]], dim=1)
        if "image_embedding" in sample:
            conditions["encoder_hidden_states_image"] = sample["image_embedding"].to(dtype)
        return Inputs(hidden, target, conditions)

    def _normalised(self, latents: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(self.vae[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
        return (latents - mean) / deviation

    # --- sampling ---------------------------------------------------------------------------------------------

    def prompts(self, pipeline, prompt, negative):
        """Embed the prompts as in extraction."""
        with torch.no_grad():
            one, other = (self.embed(pipeline, text, pipeline._execution_device)[None] for text in (prompt, negative))
        return {"prompt_embeds": one, "negative_prompt_embeds": other}
