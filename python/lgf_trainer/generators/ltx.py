"""LTX-Video of 2B: text-to-video, and image-to-video with the same weights."""

import math
from typing import ClassVar

import torch
from torch import nn

from ..runtime.errors import TrainerError
from .base import Encoders, Generator, Inputs, Tensors, posterior_sample
from .flow import noise_level, noisy_and_target, shifted

WAY_OUT = "Take LTX-Video of 2B, such as Lightricks/LTX-Video"
TEXT_TOKENS = 128  # not in any configuration
MOST_SHIFT = 2.0**24  # of noise levels in float32: a larger one makes 1 of each, and then the scheduler divides 0 by 0


class LTX(Generator):
    """Packed latents (B, tokens, C), flow matching with a noise level for each token, text by cross attention.

    The transformer is told the frames in a second. For image-to-video the tokens of the first frame stay without noise, and
    nothing is learnt from them. The embedding of a caption is zero behind its end, which says where that is.
    """

    name = "ltx"
    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline")
    transformer = "LTXVideoTransformer3DModel"
    scheduler = "FlowMatchEulerDiscreteScheduler"
    refused = {
        "LTXConditionPipeline": f"LTX-Video 0.9.5 or later (with 13B), which is conditioned otherwise. {WAY_OUT}",
        "LTXI2VLongMultiPromptPipeline": f"an LTX-Video pipeline for long videos, which cannot be trained. {WAY_OUT}",
    } | dict.fromkeys(
        ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
        f"LTX-2, which makes sound too and cannot be trained. {WAY_OUT}",
    )
    own_recipe = "ltx-sam2videox"
    released: ClassVar = {"LTX-Video-2B": {}}
    frames, height, width = 161, 512, 704  # not in any configuration
    fps = 25.0
    guidance = 3.0
    shift = 0.0  # by the number of tokens, unless it is set

    def __init__(self, path, revision, index, config, vae):
        super().__init__(path, revision, index, config, vae)
        halvings = 2 ** sum(vae["spatio_temporal_scaling"])
        self.temporal = vae["temporal_compression_ratio"] or vae["patch_size_t"] * halvings
        self.spatial = vae["spatial_compression_ratio"] or vae["patch_size"] * halvings
        self.decoded = self.temporal
        self.patch = (1, 1, 1)
        self.image_to_video = index["_class_name"] == "LTXImageToVideoPipeline"
        self.text = (TEXT_TOKENS, config["caption_channels"])
        self.channels = config["num_attention_heads"] * config["attention_head_dim"]
        self.layers = config["num_layers"]

    def grid_of(self, hidden, conditions):
        return tuple(conditions[name] for name in ("num_frames", "height", "width"))

    def blocks(self, transformer) -> nn.ModuleList:
        return transformer.transformer_blocks

    # --- extraction -------------------------------------------------------------------------------------------

    def encode(self, encoders: Encoders, video, caption, seed):
        """Normalise the moments: mean and deviation are among the VAE's weights, which training does without."""
        tensors, vae = super().encode(encoders, video, caption, seed), encoders.pipeline.vae
        mean, logvar = tensors["latents"].float().chunk(2)
        center, deviation = (one.float().view(-1, 1, 1, 1) for one in (vae.latents_mean, vae.latents_std))
        factor = vae.config.scaling_factor / deviation
        moments = torch.cat([(mean - center) * factor, logvar + 2 * factor.log()])
        return tensors | {"latents": moments.to(encoders.dtype)}

    def embed(self, pipeline, caption, device):
        options = {"do_classifier_free_guidance": False, "max_sequence_length": TEXT_TOKENS, "device": device}
        text, mask, *_ = pipeline.encode_prompt(caption, **options)
        return text[0].masked_fill(mask[0, :, None] == 0, 0)

    # --- training ---------------------------------------------------------------------------------------------

    def latents(self, moments, rng):
        return posterior_sample(moments, rng)

    def timestep(self, rng):
        """Return a noise level between 0 and 1, which `inputs` shifts by the number of tokens."""
        return noise_level(rng)

    def image(self, window: Tensors, rng, latents):
        """Return 1 for the tokens that are given, those of the first frame, and 0 for the others."""
        given = torch.zeros(latents.shape[1:])
        given[0] = 1
        return {"given": given.flatten()}

    def shift_of(self, tokens: int) -> float:
        """Return the shift of the noise levels of a video, as the pipeline shifts them; refuse one beyond MOST_SHIFT."""
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

        config = self.schedule.config
        if self.shift or not config.use_dynamic_shifting:
            return self.shift or config.shift
        ends = (config[f"{end}_{what}"] for what in ("image_seq_len", "shift") for end in ("base", "max"))
        exponent = calculate_shift(tokens, *ends)
        if exponent > math.log(MOST_SHIFT):
            raise TrainerError(
                f"a video of {tokens} tokens: the model shifts its noise levels by exp({exponent:.0f}), and all of them "
                "would be 1. Fewer frames, or a smaller width and height, make fewer tokens"
            )
        return math.exp(exponent)

    def inputs(self, sample: Tensors, dtype: torch.dtype) -> Inputs:
        text, (frames, height, width) = sample["text"], sample["latents"].shape[2:]
        latents, noise = (sample[name].flatten(2).transpose(1, 2) for name in ("latents", "noise"))
        timestep = shifted(sample["timestep"].float(), self.shift_of(latents.shape[1]))
        counted = None
        if "given" in sample:
            counted = 1 - sample["given"].float()
            timestep = timestep[:, None] * counted
        hidden, target = noisy_and_target(latents, noise, timestep)
        conditions = {
            "timestep": timestep,
            "encoder_hidden_states": text.to(dtype),
            "encoder_attention_mask": text.any(-1).to(dtype),
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (self.temporal / self.fps, self.spatial, self.spatial),
        }
        return Inputs(hidden, target, conditions, counted=None if counted is None else counted[..., None])

    # --- sampling ---------------------------------------------------------------------------------------------

    def sampled_size(self, frames, height, width):
        frames, height, width = super().sampled_size(frames, height, width)
        self.shift_of((1 + (frames - 1) // self.temporal) * (height // self.spatial) * (width // self.spatial))
        return frames, height, width

    def prompts(self, pipeline, prompt, negative):
        return super().prompts(pipeline, prompt, negative) | {"frame_rate": self.fps}
