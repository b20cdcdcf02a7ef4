"""What CogVideoX sees of a video: moments of its VAE's posterior, those of the first frame, and T5's text embeddings."""

import hashlib
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, DiffusionPipeline
from torch import Tensor

from ..runtime.errors import TrainerError, in_short
from ..runtime.hub import frozen, pretrained

IMAGE_NOISE = (-3.0, 0.5)  # mean and deviation of the logarithm of the noise's deviation, as CogVideoX-I2V was trained


class Student(NamedTuple):
    """The numbers of a CogVideoX model that decide the shapes of everything; read from its configs alone."""

    image_to_video: bool
    frames: int  # pixels, as are the next two: what the model was made for
    height: int
    width: int
    temporal: int  # pixel frames for each frame of tokens but the first
    spatial: int  # pixels along the side of a token
    text_tokens: int

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens of a video over time, height and width.

        Raises:
            TrainerError: the video cannot be cut into tokens.
        """
        if frames < 1 + self.temporal or (frames - 1) % self.temporal:
            fits = 1 + self.temporal * max(1, (frames - 1) // self.temporal)
            raise TrainerError(
                f"frames is {frames}, and the model takes a multiple of {self.temporal} plus 1, such as {fits}"
            )
        for name, pixels in (("height", height), ("width", width)):
            if pixels < self.spatial or pixels % self.spatial:
                fits = self.spatial * max(1, pixels // self.spatial)
                raise TrainerError(
                    f"{name} is {pixels}, and the model takes a multiple of {self.spatial}, such as {fits}"
                )
        return 1 + (frames - 1) // self.temporal, height // self.spatial, width // self.spatial


def read_student(model: str) -> Student:
    """The numbers of the CogVideoX pipeline `model`, a folder or a name on the Hugging Face hub.

    Raises:
        TrainerError: there is no such pipeline.
    """
    try:
        transformer = CogVideoXTransformer3DModel.load_config(model, subfolder="transformer")
        vae = AutoencoderKLCogVideoX.load_config(model, subfolder="vae")
    except (OSError, ValueError) as error:
        raise TrainerError(
            f"{model} is no CogVideoX pipeline that can be read ({in_short(error)}). Give a folder, or a "
            "name on the Hugging Face hub and a network, such as --model THUDM/CogVideoX-5b-I2V"
        ) from error
    pixels = 2 ** (len(vae["block_out_channels"]) - 1)  # along the side of a latent
    return Student(
        image_to_video=transformer["in_channels"] == 2 * vae["latent_channels"],
        frames=transformer["sample_frames"],
        height=transformer["sample_height"] * pixels,
        width=transformer["sample_width"] * pixels,
        temporal=vae["temporal_compression_ratio"] * (transformer.get("patch_size_t") or 1),
        spatial=pixels * transformer["patch_size"],
        text_tokens=transformer["max_text_seq_length"],
    )


class Encoders:
    """VAE and text encoder of a CogVideoX pipeline.

    Args:
        model: a folder in Hugging Face format, or a name on the hub.
        device: where to compute.
        dtype: of the weights and of what is put out. CogVideoX was trained in bfloat16 (2B: float16).
        tiling: encode the video in overlapping tiles: less memory, and slightly other latents.
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype, tiling: bool = False):
        self.student = read_student(model)
        # Without the transformer, by far the largest part, which extraction has no use for.
        self._pipeline = pretrained(DiffusionPipeline, model, transformer=None, scheduler=None, dtype=dtype)
        frozen(self._pipeline.text_encoder, device)
        self._vae, self._device, self._dtype = frozen(self._pipeline.vae, device), device, dtype
        if tiling:
            self._vae.enable_tiling()
        self._caption: str | None = None

    @torch.no_grad()
    def video(self, pixels: Tensor) -> Tensor:
        """Moments (2C, F, h, w), mean then logarithm of the variance, of a video (N, 3, H, W) in [-1, 1]; unscaled."""
        video = pixels.transpose(0, 1)[None].to(self._device, self._dtype)
        return self._vae.encode(video).latent_dist.parameters[0]

    def image(self, frame: Tensor, seed: str) -> Tensor:
        """Moments (2C, 1, h, w) of a frame (3, H, W) with noise of deviation exp(N(-3, 0.5)), both drawn from the seed."""
        rng = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
        mean, deviation = IMAGE_NOISE
        sigma = (mean + deviation * torch.randn((), generator=rng)).exp()
        return self.video((frame.float() + sigma * torch.randn(frame.shape, generator=rng))[None])

    @torch.no_grad()
    def text(self, caption: str) -> Tensor:
        """Embeddings (tokens, width) of a caption, padded or cut to the model's length."""
        if caption != self._caption:  # the windows of a video come one after the other and share it
            self._caption = caption
            self._embedding = self._pipeline.encode_prompt(
                caption,
                do_classifier_free_guidance=False,
                max_sequence_length=self.student.text_tokens,
                device=self._device,
            )[0][0]
        return self._embedding
