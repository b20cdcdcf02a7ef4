"""`lgf sample`: videos of a CogVideoX model without and with a LoRA, from the same noise."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

from .data.prompts import Request, read_list
from .runtime.errors import TrainerError
from .runtime.files import must_be_writable, write_atomically
from .runtime.text import with_help

if TYPE_CHECKING:
    from .generators.sampling import Generator


@dataclass(frozen=True)
class Options:
    """Generate videos without and with a LoRA, from the same seed.

    Writes OUTPUT/without/NAME.mp4, OUTPUT/with/NAME.mp4 and OUTPUT/grid/NAME.png (frames of both, a row each). Every
    mp4 says in its metadata how it was made. Videos that are there, made alike, are kept: stop it whenever you like and
    run it again. On several GPUs: accelerate launch -m lgf_cli sample ...

    Everything is read from this machine, unless --model is the name of a model on the Hugging Face hub.

        lgf sample --model CogVideoX-5b-I2V --lora run --image dog.png --prompt "A dog runs." --output out
        lgf sample --model CogVideoX-5b-I2V --lora run --prompts vbench.jsonl --output out --samples 5
    """

    model: str
    """A CogVideoX pipeline: a folder as save_pretrained writes it, or a name on the hub such as
    THUDM/CogVideoX-5b-I2V, which is downloaded."""
    output: Path
    """Folder for the results."""
    prompt: str | None = None
    """What the video shows."""
    image: Path | None = None
    """First frame, for image-to-video models: a picture, or a video whose first frame is taken."""
    prompts: Path | None = None
    """Instead of --prompt and --image, a list: .jsonl (an object a line) or .tsv (the first line names the columns)
    with prompt, image (relative to the list), name and seed."""
    lora: Path | None = None
    """LoRA with its metadata, as lgf train writes it: the .safetensors file or its folder."""
    lora_weight: float = 1.0
    """Factor on the LoRA; 1 is what was trained."""
    compare: bool = True
    """Also generate without the LoRA."""
    side_by_side: bool = False
    """Also write OUTPUT/both/NAME.mp4: without on the left, with on the right."""
    samples: int = 1
    """Videos for each prompt, with seeds SEED, SEED + 1, ...; more than one are called NAME-0, NAME-1, ..."""
    seed: int = 0
    """Seed of the noise."""
    steps: int = 50
    """Denoising steps. The paper's 50."""
    guidance: float = 6.0
    """Classifier-free guidance scale; 1 is none. The paper's 6."""
    negative_prompt: str = ""
    """What the video shall not show."""
    frames: int | None = None
    """Frames of the video, 1 more than a multiple of 8. Default: the model's (49)."""
    height: int | None = None
    """Height in pixels. Default: the model's (480)."""
    width: int | None = None
    """Width in pixels. Default: the model's (720)."""
    fit: Literal["refuse", "crop", "stretch"] = "refuse"
    """An image of other proportions than the video: say so and stop, take the largest part from its middle, or distort."""
    fps: float = 8.0
    """Frames per second of the mp4; CogVideoX makes 8."""
    grid_frames: int = 8
    """Columns of the grid."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and activations. auto: bfloat16 on an accelerator, float32 on a CPU."""
    device: str = "auto"
    """Such as cuda, cuda:1 or cpu. auto: the first accelerator, one for each process, or the CPU."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep weights in the CPU's memory but for the part at work (model) or its layer at work (sequential, slow)."""
    tile_vae: bool = False
    """Decode in tiles: less memory, slightly other pixels."""


def main(arguments: list[str]) -> int:
    """Run `lgf sample ARGUMENTS`; 0 when all videos are there."""
    options = tyro.cli(with_help(Options), args=arguments, prog="lgf sample")
    requests = _requests(options)

    from accelerate.utils import gather_object
    from tqdm import tqdm

    from .data.export import encode_video
    from .generators.sampling import Generator
    from .runtime.distributed import this_process  # these are slow to import, and --help needs none of them

    process = this_process()
    mine = requests[process.process_index :: process.num_processes]
    generator = Generator(options, process.device, mine)
    plan = {request: [_video(options, generator, request, arm) for arm in _arms(options)] for request in mine}
    missing = {video.path for videos in plan.values() for video in videos if not video.is_there()}
    # One account for all processes: lines of several would run into each other.
    counts = gather_object([(len(missing), sum(map(len, plan.values())))])
    to_generate, total = map(sum, zip(*counts, strict=True))
    if process.is_main_process:
        print(f"{to_generate} videos to generate, {total - to_generate} are there", flush=True)
    if missing:
        must_be_writable(options.output)
        generator.load()
    with tqdm(
        total=len(missing) * options.steps, unit="step", disable=not (missing and process.is_local_main_process)
    ) as bar:
        for request, videos in plan.items():
            for video in videos:
                if video.path in missing:
                    bar.set_description(f"{request.name} {video.arm}")
                    frames = generator.generate(request, video.arm == "with", on_step=bar.update)
                    write_atomically(video.path, encode_video(frames, options.fps, video.settings))
            _write_pictures(options, request.name, {video.arm: video.path for video in videos})
    process.wait_for_everyone()
    if process.is_main_process:
        print(f"{total} videos are in {options.output}, and their grids in {options.output / 'grid'}", flush=True)
    process.destroy_process_group()
    return 0


class Video(NamedTuple):
    """A video that is to be there at the end."""

    path: Path
    arm: str
    settings: dict[str, Any]

    def is_there(self) -> bool:
        """Whether it has been made already.

        Raises:
            TrainerError: it has been made otherwise.
        """
        from .data.export import made_with

        if not self.path.exists():
            return False
        found = made_with(self.path)
        for name in sorted(self.settings.keys() | found.keys()):
            here, wanted = found.get(name), self.settings.get(name)
            if here != wanted:
                raise TrainerError(
                    f"{self.path} was made with {name} = {here!r}, and this run has {wanted!r}. "
                    "Use another --output, or remove it"
                )
        return True


def _arms(options: Options) -> list[str]:
    if options.lora is None:
        return ["without"]
    return ["without", "with"] if options.compare else ["with"]


def _video(options: Options, generator: "Generator", request: Request, arm: str) -> Video:
    path = options.output / arm / f"{request.name}.mp4"
    return Video(path, arm, generator.settings(request, arm == "with"))


def _requests(options: Options) -> list[Request]:
    """What is asked for, every sample by itself."""
    if options.prompts and (options.prompt is not None or options.image):
        raise TrainerError("give either --prompts, or --prompt and --image")
    for name in ("samples", "steps", "grid_frames", "fps"):
        if not 0 < getattr(options, name) < math.inf:
            raise TrainerError(f"--{name.replace('_', '-')} must be greater than 0, not {getattr(options, name)}")
    for name in ("guidance", "lora_weight"):
        if not math.isfinite(getattr(options, name)):
            raise TrainerError(f"--{name.replace('_', '-')} must be a number, not {getattr(options, name)}")
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


def _write_pictures(options: Options, name: str, videos: dict[str, Path]) -> None:
    """The grid, and both videos side by side, from the files: a run that was stopped between the two goes on here."""
    from .data.export import decode_video, encode_video, frame_grid, side_by_side

    newest = max(path.stat().st_mtime_ns for path in videos.values())
    outputs = {"grid": options.output / "grid" / f"{name}.png"}
    if options.side_by_side and len(videos) == 2:
        outputs["both"] = options.output / "both" / f"{name}.mp4"
    if all(path.exists() and path.stat().st_mtime_ns >= newest for path in outputs.values()):
        return
    frames = {arm: decode_video(path) for arm, path in videos.items()}
    write_atomically(outputs["grid"], frame_grid(frames, options.grid_frames))
    if "both" in outputs:
        write_atomically(outputs["both"], encode_video(side_by_side(list(frames.values())), options.fps, {}))
