"""`lgf sample`: videos of a model without and with a LoRA, from the same noise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from PIL import Image, ImageOps

from .commands import SampleOptions as Options
from .data.export import Frames, decode_video, encode_video, frame_grid, made_with, side_by_side
from .data.pictures import read_picture
from .data.prompts import Request, read_list
from .generators.base import Generator
from .generators.lora import find_lora, load_lora, must_fit
from .runtime.distributed import choose_device, this_process
from .runtime.errors import TrainerError
from .runtime.files import content_hash, must_be_writable, write_atomically
from .runtime.progress import progress
from .runtime.settings import must_be_made_with


def run(options: Options) -> None:
    """Generate the videos that are missing, and their grids."""
    requests = _requests(options)

    process = this_process()
    mine = requests[process.process_index :: process.num_processes]
    sampler = Sampler(options, process.device, mine)
    arms = ["without"] * (options.lora is None or options.compare) + ["with"] * (options.lora is not None)
    plan = {
        request: [
            PlannedVideo(options.output / arm / f"{request.name}.mp4", arm, sampler.settings(request, arm == "with"))
            for arm in arms
        ]
        for request in mine
    }
    missing = {video.path for videos in plan.values() for video in videos if not video.is_there()}
    # The main process reports for all: lines of several processes would mix.
    counts = gather_object([(len(missing), sum(map(len, plan.values())))])
    to_generate, total = map(sum, zip(*counts, strict=True))
    if process.is_main_process:
        print(f"{to_generate} videos to generate, {total - to_generate} are there", flush=True)
    if missing:
        must_be_writable(options.output)
        sampler.load()
    with progress(
        desc="sampling",
        total=len(missing) * options.steps,
        unit="step",
        disable=not (missing and process.is_local_main_process),
    ) as bar:
        for request, videos in plan.items():
            for video in videos:
                if video.path in missing:
                    bar.set_description_str(f"{request.name} {video.arm}", refresh=False)
                    frames = sampler.generate(request, video.arm == "with", on_step=bar.update)
                    write_atomically(video.path, encode_video(frames, sampler.fps, video.settings))
            _write_pictures(options, sampler.fps, request.name, {video.arm: video.path for video in videos})
    process.wait_for_everyone()
    if process.is_main_process:
        print(f"{total} videos are in {options.output}, and their grids in {options.output / 'grid'}", flush=True)
    process.destroy_process_group()


class PlannedVideo(NamedTuple):
    """A video to generate, with the settings that are stored in it."""

    path: Path
    arm: str
    settings: dict[str, Any]

    def is_there(self) -> bool:
        """Return whether it has been made already; refuse one that was made otherwise."""
        if not self.path.exists():
            return False
        must_be_made_with(self.settings, self.path, made_with(self.path), "Use another --output, or remove it")
        return True


def _requests(options: Options) -> list[Request]:
    """Return what is asked for, every sample by itself."""
    if options.prompts and (options.prompt is not None or options.image):
        raise TrainerError("give either --prompts, or --prompt and --image")
    if options.prompts:
        requests = read_list(options.prompts, options.seed)
    elif options.prompt is not None:
        name = options.image.stem if options.image else "video"
        requests = [Request(name, options.prompt, options.image, options.seed)]
    else:
        raise TrainerError("give --prompt (and --image), or a list of them with --prompts")
    if options.samples > 1:
        requests = [
            request._replace(name=f"{request.name}-{k}", seed=request.seed + k)
            for request in requests
            for k in range(options.samples)
        ]
    for request in requests:
        if not -(2**63) <= request.seed < 2**63:
            raise TrainerError(f"{request.name}: the seed must fit into 64 bits, and is {request.seed}")
    return requests


def _write_pictures(options: Options, fps: float, name: str, videos: dict[str, Path]) -> None:
    """Write the grid, and both videos side by side, from the files: a run stopped between the two continues here."""
    newest = max(path.stat().st_mtime_ns for path in videos.values())
    outputs = {"grid": options.output / "grid" / f"{name}.png"}
    if options.side_by_side and len(videos) == 2:
        outputs["both"] = options.output / "both" / f"{name}.mp4"
    if all(path.exists() and path.stat().st_mtime_ns >= newest for path in outputs.values()):
        return
    frames = {arm: decode_video(path) for arm, path in videos.items()}
    write_atomically(outputs["grid"], frame_grid(frames, options.grid_frames))
    if "both" in outputs:
        write_atomically(outputs["both"], encode_video(side_by_side(list(frames.values())), fps, {}))


class Sampler:
    """A pipeline with its LoRA, and the size and rate of its videos.

    It reads settings at first and weights with `load()`, so that mistakes show before minutes pass.

    Args:
        options: of the command.
        device: used when the options leave it open.
        requests: all that will be asked for.

    Raises:
        TrainerError: no such model, one of a family that is not here, a size that it cannot make, an image that is missing
            or has other proportions, a LoRA without metadata or of another model.
    """

    def __init__(self, options: Options, device: torch.device, requests: Sequence[Request]):
        self.options = options
        self.device = choose_device(options.device, device)
        accelerated = self.device.type != "cpu"
        self.dtype = ("bfloat16" if accelerated else "float32") if options.dtype == "auto" else options.dtype
        if options.offload != "none" and not accelerated:
            raise TrainerError(f"--offload {options.offload} is for accelerators, and this runs on the CPU")
        if not Path(options.model).exists():
            print(f"{options.model} is no folder here: asking the Hugging Face hub for it", flush=True)
        self.generator = Generator.read(options.model)
        if options.negative_prompt and not self.generator.negative:
            raise TrainerError(
                f"{options.model} is told its guidance, and looks at no negative prompt. Leave --negative-prompt out"
            )
        self.frames, self.height, self.width = self.generator.sampled_size(
            options.frames, options.height, options.width
        )
        self.fps = self.generator.fps if options.fps is None else options.fps
        self.generator.fps = self.fps  # some models are told it
        self.guidance = self.generator.guidance if options.guidance is None else options.guidance
        self.lora = find_lora(options.lora) if options.lora else None
        if self.lora:
            must_fit(self.lora, self.generator.empty_transformer())
        for request in progress(requests, desc="checking images", disable=len(requests) < 20):
            self._check(request)

    def load(self) -> None:
        """Read the weights.

        Raises:
            TrainerError: they are not there, or the LoRA does not load.
        """
        self.pipeline = self.generator.pipeline(getattr(torch, self.dtype))
        self.pipeline.set_progress_bar_config(disable=True)
        steps, noise = self.options.steps, self.pipeline.scheduler.config
        if steps > (most := noise.num_train_timesteps):
            raise TrainerError(f"--steps must be at most {most}, the noise steps of the model, not {steps}")
        if steps == 1 and noise.get("shift_terminal"):
            raise TrainerError(
                f"--steps must be at least 2: the first and the last noise level of {self.options.model} differ"
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
        """Generate the video of a request: the same noise with and without the LoRA, on any device."""
        if self.lora:
            self.pipeline.enable_lora() if with_lora else self.pipeline.disable_lora()

        def step_done(*_: object) -> dict:
            on_step()
            return {}

        words = {"max_sequence_length": self.generator.text[0]}  # unless the family says otherwise
        words |= self.generator.prompts(self.pipeline, request.prompt, self.options.negative_prompt)
        video = self.pipeline(
            **({"image": self._first_frame(request.image)} if self.generator.image_to_video else {}),
            **words,
            height=self.height,
            width=self.width,
            num_frames=self.frames,
            num_inference_steps=self.options.steps,
            guidance_scale=self.guidance,
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
        """Return all that decides what the video looks like."""
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
            **{name: getattr(self, name) for name in ("guidance", "frames", "height", "width", "fps", "dtype")},
            "tile_vae": options.tile_vae,
        }

    def _check(self, request: Request) -> None:
        if self.generator.image_to_video and request.image is None:
            raise TrainerError(f"{self.options.model} makes videos from images: {request.name} needs one (--image)")
        if not self.generator.image_to_video and request.image is not None:
            raise TrainerError(f"{self.options.model} makes videos from text only: {request.name} must have no image")
        if request.image is None:
            return
        image = read_picture(request.image)
        height = image.height * self.width / image.width  # when it is as wide as the video
        if self.options.fit == "refuse" and abs(height - self.height) > 1:
            raise TrainerError(
                f"{request.image} is {image.width} x {image.height}, and the video {self.width} x {self.height}: other "
                "proportions. Cut it yourself, or choose --fit crop or --fit stretch"
            )

    def _first_frame(self, path: Path) -> Image.Image:
        image, size = read_picture(path), (self.width, self.height)
        if self.options.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return image.resize(size, Image.Resampling.LANCZOS)
