"""CogVideoX: 2B, 5B, 5B-I2V and 1.5."""

import hashlib
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..runtime.errors import TrainerError
from .base import Encoders, Generator, Inputs, Tensors, posterior_sample

IMAGE_NOISE = (-3.0, 0.5)  # mean and deviation of the logarithm of the noise's deviation, as CogVideoX-I2V was trained

LARGE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}


class CogVideoX(Generator):
    """Latents (B, F, C, h, w), v-prediction, text before the video tokens in a block, and split off behind it."""

    name = "cogvideox"
    pipelines = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")
    transformer = "CogVideoXTransformer3DModel"
    scheduler = "CogVideoXDDIMScheduler"
    refused = dict.fromkeys(
        ("CogVideoXVideoToVideoPipeline", "CogVideoXFunControlPipeline"),
        "a CogVideoX pipeline for another use. Its weights are trained from a folder whose model_index.json names "
        "CogVideoXPipeline or CogVideoXImageToVideoPipeline",
    )
    released: ClassVar = {
        "CogVideoX-2B": {},
        "CogVideoX-5B": LARGE,
        "CogVideoX-5B-I2V": LARGE | {"in_channels": 32, "use_learned_positional_embeddings": True},
    }
    #: Frames for two latents: diffusers decodes by twos, and gives an even number of latents 3 frames too many.
    decoded = 8

    def __init__(self, path, revision, index, config, vae):
        super().__init__(path, revision, index, config, vae)
        pixels = 2 ** (len(vae["block_out_channels"]) - 1)  # along the side of a latent
        self.patch = (config["patch_size_t"] or 1, config["patch_size"], config["patch_size"])
        self.layers = config["num_layers"]
        self.image_to_video = config["in_channels"] == 2 * config["out_channels"]
        self.frames = config["sample_frames"]
        self.height, self.width = config["sample_height"] * pixels, config["sample_width"] * pixels
        self.temporal = vae["temporal_compression_ratio"] * self.patch[0]
        self.spatial = pixels * self.patch[1]
        self.text = (config["max_text_seq_length"], config["text_embed_dim"])
        self.channels = config["num_attention_heads"] * config["attention_head_dim"]
        self.scale = vae["scaling_factor"]
        self.image_scale = 1 / self.scale if vae["invert_scale_latents"] else self.scale  # 1.5 was trained with it

    def grid_of(self, hidden, conditions):
        frames, _, height, width = hidden[1:]
        return frames // self.patch[0], height // self.patch[1], width // self.patch[2]

    def blocks(self, transformer) -> nn.ModuleList:
        return transformer.transformer_blocks

    def encode(self, encoders: Encoders, video, caption, seed):
        tensors = super().encode(encoders, video, caption, seed)
        if self.image_to_video:
            tensors["image"] = encoders.moments(noisy(video[:1], seed))
        return tensors

    # --- training ---------------------------------------------------------------------------------------------

    def needs(self, shapes):
        yield from super().needs(shapes)
        config, (frames, height, width) = self.config, shapes["latents"][1:]
        if self.image_to_video and "image" not in shapes:
            way_out = "extract for an image-to-video model"
            yield "latents of", "the video only", "those of its first frame too", way_out
        rows, columns = config["sample_height"], config["sample_width"]
        if self.patch[0] > 1 and (height > rows or width > columns):
            way_out = "its rotary embedding ends there. Extract at that size"
            yield "latents of size", f"{height} x {width}", f"at most {rows} x {columns}", way_out
        if config["use_learned_positional_embeddings"]:
            ratio, pixels = self.temporal // self.patch[0], self.spatial // self.patch[1]
            size = "{} frames of {} x {} pixels".format
            have = size(frames * ratio - ratio + 1, height * pixels, width * pixels)
            need = size(self.frames, self.height, self.width)
            yield "size", have, need, "it learned positions for that size only. Extract at that size"

    def latents(self, moments, rng):
        """Return latents (F, C, h, w), scaled; the first frame is repeated until there are whole tokens."""
        latents = self.scale * posterior_sample(moments, rng).transpose(0, 1)
        missing = -len(latents) % self.patch[0]
        return torch.cat([latents[:1].expand(missing, -1, -1, -1), latents])

    def timestep(self, rng):
        return torch.randint(self.schedule.config.num_train_timesteps, (), generator=rng)

    def image(self, window, rng, latents):
        """Return a sample of the image's posterior in the first frame, zeros in the others."""
        image = self.image_scale * posterior_sample(window["image"], rng).transpose(0, 1)
        return {"image": torch.cat([image, image.new_zeros(len(latents) - 1, *image.shape[1:])])}

    def inputs(self, sample: Tensors, dtype: torch.dtype) -> Inputs:
        latents, timestep = sample["latents"], sample["timestep"]
        hidden, target = v_prediction(self.schedule, latents, sample["noise"], timestep)
        if "image" in sample:
            hidden = torch.cat([hidden, sample["image"]], dim=2)
        conditions = {"timestep": timestep, "encoder_hidden_states": sample["text"].to(dtype)}
        if self.config["use_rotary_positional_embeddings"]:
            frames, _, height, width = latents.shape[1:]
            conditions["image_rotary_emb"] = self.rotary_embedding(frames, height, width, latents.device)
        if self.config["ofs_embed_dim"] is not None:
            conditions["ofs"] = latents.new_full((1,), 2.0)  # the only value that 1.5 was trained with
        return Inputs(hidden, target, conditions)

    def rotary_embedding(self, frames: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rotary position embedding of latents of `frames` x `height` x `width`, as the pipelines make it."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid

        config, patch = self.config, self.patch[1]
        grid = (height // patch, width // patch)
        base = (config["sample_height"] // patch, config["sample_width"] // patch)
        if config["patch_size_t"] is None:
            crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
            return get_3d_rotary_pos_embed(config["attention_head_dim"], crop, grid, frames, device=device)
        return get_3d_rotary_pos_embed(
            config["attention_head_dim"], None, grid, -(-frames // self.patch[0]),
            grid_type="slice", max_size=base, device=device,
        )  # fmt: skip

    # --- sampling ---------------------------------------------------------------------------------------------

    def sampled_size(self, frames, height, width):
        if self.patch[0] > 1 and None in (height, width):
            raise TrainerError(f"{self.path} has no size of its own: give --height and --width, such as 768 and 1360")
        size, own = super().sampled_size(frames, height, width), (self.frames, self.height, self.width)
        if self.config["use_learned_positional_embeddings"] and size != own:
            raise TrainerError(
                f"{self.path} has learned positions and makes {own[0]} frames of {own[2]} x {own[1]} only, "
                f"not {size[0]} of {size[2]} x {size[1]}. Leave --frames, --height and --width out"
            )
        return size


def v_prediction(schedule: Any, latents: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return (noisy latents, velocity sqrt(a) noise - sqrt(1 - a) latents), in float32.

    In bfloat16 diffusers' schedulers round the cumulative alphas, and the target of the first noise steps is then wrong by
    as much as itself.
    """
    latents, noise = latents.float(), noise.float()
    return schedule.add_noise(latents, noise, timestep), schedule.get_velocity(latents, noise, timestep)


def noisy(frames: Tensor, seed: str) -> Tensor:
    """Return frames with noise of deviation exp(N(-3, 0.5)), both drawn from the seed."""
    rng = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    mean, deviation = IMAGE_NOISE
    sigma = (mean + deviation * torch.randn((), generator=rng)).exp()
    return frames.float() + sigma * torch.randn(frames.shape[1:], generator=rng)
