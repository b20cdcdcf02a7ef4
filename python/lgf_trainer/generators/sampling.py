"""A CogVideoX pipeline that generates a video with or without its LoRA."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
)
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from ..data.export import Frames
from ..data.prompts import Request
from ..data.video import Fit, Video, VideoError
from ..runtime.distributed import choose_device
from ..runtime.errors import TrainerError, in_short
from ..runtime.files import content_hash
from ..runtime.hub import pretrained
from .lora import find_lora, load_lora

if TYPE_CHECKING:
    from ..sample import Options

PIPELINES = {kind.__name__: kind for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline)}
SPATIAL = 8  # pixels for a latent, in all versions of CogVideoX
TEMPORAL = 8  # frames for two latents: diffusers decodes by twos, and gives an even number of latents 3 frames too many


class Generator:
    """What `lgf sample` generates with.

    It reads settings at first and weights with `load()`, so that mistakes show before minutes pass.

    Args:
        options: of the command.
        device: used when the options leave it open.
        requests: all that will be asked for.

    Raises:
        TrainerError: no such model, one that is no CogVideoX, a size that it cannot make, an image that is missing or
            has other proportions, a LoRA without metadata.
    """

    def __init__(self, options: "Options", device: torch.device, requests: Sequence[Request]):
        self.options = options
        self.device = choose_device(options.device, device)
        accelerated = self.device.type != "cpu"
        self.dtype = ("bfloat16" if accelerated else "float32") if options.dtype == "auto" else options.dtype
        if options.offload != "none" and not accelerated:
            raise TrainerError(f"--offload {options.offload} is for accelerators, and this runs on the CPU")
        self.kind, config = _read_settings(options.model)
        self.from_image = self.kind is CogVideoXImageToVideoPipeline
        self.text_tokens = config["max_text_seq_length"]
        self.frames, self.height, self.width = _video_size(options, config)
        self.lora = find_lora(options.lora) if options.lora else None
        for request in tqdm(requests, desc="checking images", disable=len(requests) < 20):
            self._check(request)

    def load(self) -> None:
        """Read the weights.

        Raises:
            TrainerError: they are not there, or the LoRA was made for another model.
        """
        self.pipeline = pretrained(self.kind, self.options.model, dtype=getattr(torch, self.dtype))
        self.pipeline.set_progress_bar_config(disable=True)
        if self.options.steps > (most := self.pipeline.scheduler.config.num_train_timesteps):
            raise TrainerError(
                f"--steps must be at most {most}, the noise steps of the model, not {self.options.steps}"
            )
        if self.options.tile_vae:
            self.pipeline.vae.enable_tiling()
        if self.lora:
            load_lora(self.pipeline, self.lora, self.options.lora_weight)
        match self.options.offload:
            case "model":
                self.pipeline.enable_model_cpu_offload(device=self.device)
            case "sequential":
                self.pipeline.enable_sequential_cpu_offload(device=self.device)
            case _:
                self.pipeline.to(self.device)

    @torch.no_grad()
    def generate(self, request: Request, with_lora: bool, on_step: Callable[[], object] = lambda: None) -> Frames:
        """The video of a request: the same noise with and without the LoRA, on any device."""
        if self.lora:
            self.pipeline.enable_lora() if with_lora else self.pipeline.disable_lora()

        def step_done(*_: object) -> dict:
            on_step()
            return {}

        video = self.pipeline(
            **({"image": self._first_frame(request.image)} if self.from_image else {}),
            prompt=request.prompt,
            negative_prompt=self.options.negative_prompt,
            height=self.height,
            width=self.width,
            num_frames=self.frames,
            num_inference_steps=self.options.steps,
            guidance_scale=self.options.guidance,
            max_sequence_length=self.text_tokens,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            callback_on_step_end=step_done,
            output_type="pt",
        ).frames[0]
        if not video.isfinite().all():
            raise TrainerError(
                f"{request.name}: the model's output is NaN in {self.dtype}. Try --dtype bfloat16 or float32"
            )
        return (video.float() * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def settings(self, request: Request, with_lora: bool) -> dict[str, Any]:
        """All that decides what the video looks like."""
        options = self.options
        return {
            "model": str(Path(options.model)),  # a/ and ./a are one folder
            "lora": content_hash(self.lora) if with_lora else None,
            "lora_weight": options.lora_weight if with_lora else None,
            "prompt": request.prompt,
            "negative_prompt": options.negative_prompt,
            "image": content_hash(request.image) if request.image else None,
            "fit": options.fit if request.image else None,
            "seed": request.seed,
            "steps": options.steps,
            "guidance": options.guidance,
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            "fps": options.fps,
            "dtype": self.dtype,
            "tile_vae": options.tile_vae,
        }

    def _check(self, request: Request) -> None:
        if self.from_image and request.image is None:
            raise TrainerError(f"{self.options.model} makes videos from images: {request.name} needs one (--image)")
        if not self.from_image and request.image is not None:
            raise TrainerError(f"{self.options.model} makes videos from text only: {request.name} must have no image")
        if request.image is None:
            return
        image = _open_image(request.image)
        height = image.height * self.width / image.width  # when it is as wide as the video
        if self.options.fit == "refuse" and abs(height - self.height) > 1:
            raise TrainerError(
                f"{request.image} is {image.width} x {image.height}, and the video {self.width} x {self.height}: other "
                "proportions. Cut it yourself, or choose --fit crop or --fit stretch"
            )

    def _first_frame(self, path: Path) -> Image.Image:
        image, size = _open_image(path), (self.width, self.height)
        if self.options.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return image.resize(size, Image.Resampling.LANCZOS)


def _read_settings(model: str) -> tuple[type, dict[str, Any]]:
    """The class of the pipeline and the configuration of its transformer."""
    if Path(model).exists():
        if not (Path(model) / "model_index.json").is_file():
            raise TrainerError(
                f"{model} is no pipeline: it has no model_index.json. Give the folder of save_pretrained"
            )
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        print(f"{model} is no folder here: asking the Hugging Face hub for it", flush=True)
    else:
        raise TrainerError(f"{model}: no such folder. Give a pipeline's folder, or a name on the hub (owner/name)")
    try:
        name = DiffusionPipeline.load_config(model)["_class_name"]
        if name not in PIPELINES:
            raise TrainerError(f"{model} is a {name}: lgf sample runs {' and '.join(PIPELINES)}")
        return PIPELINES[name], CogVideoXTransformer3DModel.load_config(model, subfolder="transformer")
    except (OSError, KeyError) as error:
        raise TrainerError(f"{model} cannot be read ({in_short(error)})") from error


def _video_size(options: "Options", config: dict[str, Any]) -> tuple[int, int, int]:
    """(frames, height, width), checked: diffusers would round some and quietly change the model for others."""
    own = (config["sample_frames"], config["sample_height"] * SPATIAL, config["sample_width"] * SPATIAL)
    asked = (options.frames, options.height, options.width)
    if config.get("patch_size_t") and None in asked[1:]:
        raise TrainerError(f"{options.model} has no size of its own: give --height and --width, such as 768 and 1360")
    frames, height, width = (o if a is None else a for a, o in zip(asked, own, strict=True))
    step = SPATIAL * config["patch_size"]
    if height % step or width % step or frames % TEMPORAL != 1 or min(height, width, frames) < 1:
        raise TrainerError(
            f"a video of {frames} frames of {width} x {height}: width and height must be multiples of {step}, "
            f"and frames 1 more than a multiple of {TEMPORAL}"
        )
    if config.get("use_learned_positional_embeddings") and (frames, height, width) != own:
        raise TrainerError(
            f"{options.model} has learned positions and makes {own[0]} frames of {own[2]} x {own[1]} only, "
            f"not {frames} of {width} x {height}. Leave --frames, --height and --width out"
        )
    return frames, height, width


def _open_image(path: Path) -> Image.Image:
    """A picture, upright, or the first frame of a video."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        pass
    except OSError as error:
        raise TrainerError(f"{path} cannot be read ({error.strerror or error}). Give a picture or a video") from error
    try:
        video = Video(path, rate=1)
        ((_, frames),) = video.windows([0], 1, Fit.stretch(video.size, video.size))
    except VideoError as error:
        raise TrainerError(f"{path} is neither a picture nor a video. Give one, such as a .png or an .mp4") from error
    return Image.fromarray(frames[0].permute(1, 2, 0).numpy())
