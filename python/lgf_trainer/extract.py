"""`lgf extract`: videos -> a cache of what training needs of them, so that no teacher or encoder runs while training.

Every video is read at 8 frames a second, resized and cut to the model's picture, in windows of the model's length that
begin every 20 frames. Of each window the cache holds the VAE's posterior, the T5 embedding of the caption, and the Local
Gram Flow of SAM2's memory features of the subject, tracked forward and backward in time. With --dino it holds DINO's features too,
for REPA; --teacher none --dino makes a cache for REPA alone, of videos without boxes.

    lgf extract videos/ --output cache --detect "a person . an animal"
    lgf extract clips.jsonl --output cache                    boxes and captions from a manifest
    lgf extract shards/ --output cache                        .tar shards in webdataset format
    accelerate launch -m lgf_cli extract videos/ --output cache     one process for each GPU, on any number of nodes

Stop it whenever you like: what is there is kept, and the same command goes on from there. Videos that are damaged, too
short, or have no caption or box are left out and listed at the end.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .runtime.errors import TrainerError
from .runtime.text import with_help

if TYPE_CHECKING:
    import torch

    from .extraction import Models
    from .generators.encoders import Student

FORMAT = 1  # of the cache; counts up when windows mean something else


@dataclass
class Options:
    """Make a cache of what training needs of videos: latents, text, and the teacher's Local Gram Flow."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Videos, folders of them, JSONL manifests, webdataset .tar shards or folders of those. A manifest has lines like
    {"video": "dog.mp4", "caption": "a dog runs", "box": [x0, y0, x1, y1]}; beside a video may stand its caption as .txt
    and such fields as .json."""
    output: Path
    """Folder of the cache. If there is one made with the same options, what it lacks is added."""
    model: str = "THUDM/CogVideoX-5b-I2V"
    """CogVideoX pipeline to be trained: a folder, or a name on the Hugging Face hub (downloads its VAE and T5, once)."""
    frames: int | None = None
    """Frames of a window (default: what the model was made for, 49 for CogVideoX)."""
    height: int | None = None
    """Height in pixels (default: the model's, 480)."""
    width: int | None = None
    """Width in pixels (default: the model's, 720)."""
    fps: float = 8.0
    """Frames a second, as the model makes them."""
    stride: int = 20
    """Frames from one window's beginning to the next."""
    max_frames: int = 100
    """No window goes beyond this frame of its video."""
    allow_empty_captions: bool = False
    """Give videos without a caption an empty one, instead of leaving them out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of VAE, T5 and what is stored of them (default: bfloat16 on a GPU, float32 on a CPU). Teachers are float32."""
    vae_tiling: bool = False
    """Encode videos in tiles: takes less memory, and changes latents a little."""

    teacher: Literal["transformers", "sam2", "none"] = "transformers"
    """Implementation of SAM2: that of transformers, or the sam2 package (pip install "lgf-kernels[sam2]"). none: without
    SAM2, so that no subject is needed."""
    teacher_model: str = "facebook/sam2.1-hiera-large"
    """Weights of SAM2: a name on the Hugging Face hub (downloaded once), a folder (transformers), or
    CONFIG.yaml:CHECKPOINT.pt (sam2)."""
    detect: str = ""
    """What to look for with GroundingDINO in windows without a box or mask, such as "a person . an animal"."""
    detector: str = "IDEA-Research/grounding-dino-base"
    """Weights of GroundingDINO: a folder, or a name on the Hugging Face hub (downloaded once)."""
    detect_threshold: float = 0.3
    """How sure GroundingDINO must be, between 0 and 1."""
    time: Literal["frames", "latent"] = "frames"
    """Frames that the teacher is compared in: all (the student is interpolated to them), or those of the latents."""
    window: int = 7
    """Side of the window of Local Gram Flow, in tokens."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Of features in Local Gram Flow."""
    boundary: Literal["exclude", "zero"] = "exclude"
    """What Local Gram Flow makes of positions outside of the picture."""
    save_features: bool = False
    """Store SAM2's features too, for losses on features: several times the size."""
    save_masks: bool = False
    """Store the subject's masks too, for mask supervision."""
    dino: bool = False
    """Store DINO's features of the same frames too, one vector for each token (features_dino), for REPA and other losses on
    given features: several times the size."""
    dino_model: str = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    """Weights of DINOv3 or DINOv2: a folder, or a name on the Hugging Face hub (downloaded once). The paper's is DINOv3, of a
    size that it does not say; its weights must be asked for on the hub, those of facebook/dinov2-large need not."""


def main(arguments: list[str]) -> int:
    """Run the command with its arguments; the exit status."""
    options = tyro.cli(with_help(Options), args=arguments, prog="lgf extract", description=__doc__)
    started = time.monotonic()
    _check(options)

    import torch
    from accelerate.utils import gather_object

    from .data.cache import WindowCache
    from .data.report import Report
    from .data.sources import list_clips
    from .extraction import Extraction
    from .generators.encoders import read_student
    from .runtime.distributed import this_process

    state = this_process()
    clips = list_clips(options.sources)
    student = read_student(options.model)
    settings = _settings(options, student, state.device)
    extraction = Extraction(
        WindowCache(options.output, settings),
        lambda: _load(options, settings, state.device),
        max_frames=options.max_frames,
        allow_empty_captions=options.allow_empty_captions,
        quiet=not state.is_main_process,
    )
    try:
        report = extraction.run(clips[state.process_index :: state.num_processes])
    except torch.OutOfMemoryError as error:
        raise TrainerError(
            "the GPU's memory is full. Try --vae-tiling, another --dtype, or a smaller --teacher-model"
        ) from error
    report.seconds = time.monotonic() - started
    report = Report.merged(gather_object([report]))
    if state.is_main_process:
        print(report.text(), flush=True)
        report.save(options.output / "report.json")
    state.destroy_process_group()
    if not report.written and not report.present:
        raise TrainerError("no window was made: what the videos lack is said above")
    return 0


def _check(options: Options) -> None:
    """Refuse what cannot work before anything is loaded."""
    if not options.sources:
        raise TrainerError("no videos are given. Name files, folders, .jsonl manifests or .tar shards")
    if not 0 < options.fps < math.inf:
        raise TrainerError(f"--fps must be above 0 and finite, and is {options.fps}")
    if options.stride < 1:
        raise TrainerError(f"--stride must be at least 1 frame, and is {options.stride}")
    if not 0 <= options.detect_threshold <= 1:
        raise TrainerError(f"--detect-threshold must be between 0 and 1, and is {options.detect_threshold}")
    if options.window < 1 or options.window > 15 or options.window % 2 == 0:
        raise TrainerError(f"--window must be odd and at most 15, and is {options.window}")


def _settings(options: Options, student: "Student", device: "torch.device") -> dict[str, Any]:
    """What the windows of a cache have in common, for WindowCache."""
    own, asked = ([getattr(of, name) for name in ("frames", "height", "width")] for of in (student, options))
    frames, height, width = (o if a is None else a for o, a in zip(own, asked, strict=True))
    if options.max_frames < frames:
        raise TrainerError(f"--max-frames is {options.max_frames}, and a window alone has {frames} frames")
    tokens, *grid = student.grid(frames, height, width)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    settings = {
        "format": FORMAT,
        "model": str(Path(options.model)),  # a/ and ./a are one folder
        "image_to_video": student.image_to_video,
        "frames": frames,
        "height": height,
        "width": width,
        "fps": options.fps,
        "stride": options.stride,
        "dtype": dtype,
        "vae_tiling": options.vae_tiling,
        "grid": [frames if options.time == "frames" else tokens, *grid],
        "teacher": options.teacher,
    }
    if options.dino:
        settings["dino_model"] = options.dino_model
    if options.teacher != "none":
        names = ("teacher_model", "time", "window", "similarity", "boundary", "save_features", "save_masks", "detect")
        settings |= {name: getattr(options, name) for name in names}
        if options.detect:
            settings |= {name: getattr(options, name) for name in ("detector", "detect_threshold")}
    return settings


def _load(options: Options, settings: dict[str, Any], device: "torch.device") -> "Models":
    import torch

    from .data.subject import Detector
    from .extraction import Models
    from .generators.encoders import Encoders
    from .teachers.dino import Dino
    from .teachers.sam2 import TEACHERS

    dtype = getattr(torch, settings["dtype"])
    teacher = detector = None
    if options.teacher != "none":
        teacher = TEACHERS[options.teacher](options.teacher_model, device)
        if options.detect:
            detector = Detector(options.detect, options.detector, options.detect_threshold, device)
    dino = Dino(options.dino_model, device) if options.dino else None
    return Models(Encoders(options.model, device, dtype, options.vae_tiling), teacher, detector, dino)
