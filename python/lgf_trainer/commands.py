"""Command line of `lgf extract`, `lgf train` and `lgf sample`: options and help.

Nothing here imports torch, which takes seconds: each command imports its module once its options are understood.
"""

import importlib
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import docstring_parser
import tyro

from .runtime.errors import TrainerError
from .runtime.recipe import Count, Finite, Positive, Recipe, Share, Side, read_recipe, shipped_recipes
from .runtime.settings import from_settings, to_settings

T = TypeVar("T")

EXTRACT = """Make a cache of what training needs of videos, so that no teacher or encoder runs while training.

Every video is read at the model's rate, resized and cut to the model's picture, in windows of the model's length that
begin every 20 frames. Of each window the cache holds the VAE's posterior, the embedding of the caption, and what teachers say:
SAM2 the Local Gram Flow of its memory features of the subject, tracked forward and backward in time; with --dino, or --teachers
sam2 dino, DINO its features too, for REPA. --teachers dino makes a cache for REPA alone, of videos without boxes.

    lgf extract videos/ --output cache --detect "a person . an animal"
    lgf extract clips.jsonl --output cache                    boxes and captions from a manifest
    lgf extract shards/ --output cache                        .tar shards in webdataset format
    accelerate launch -m lgf_cli extract videos/ --output cache     one process for each GPU, on any number of nodes

Stop it whenever you like: what is there is kept, and the same command goes on from there. Videos that are damaged, too
short, or have no caption or box are left out and listed at the end.
"""

APPLY = """Add what a trained module makes of every window to a cache: the features of MoAlign's motion subspace.

    lgf train moalign-stage1 --data.cache cache --run.output runs/motion
    lgf apply runs/motion cache                                        adds features_motion
    lgf train moalign --data.cache cache --run.output runs/moalign

Stopped, the same command goes on. accelerate launch -m lgf_cli apply ... runs one process for each GPU.
"""

TRAIN = """Fine-tune a video model with a projector and an alignment loss, on what `lgf extract` has cached.

    lgf train sam2videox --data.cache cache --run.output runs/dog      the paper's recipe
    lgf train my-recipe.yaml --training.steps 500                      your own, and a change to it
    accelerate launch -m lgf_cli train sam2videox ...                  on several GPUs and nodes

A run that is started again goes on from its last checkpoint.

Recipes: {}."""


def extract(arguments: list[str]) -> int:
    """Run `lgf extract ARGUMENTS`; return the exit status."""
    return _run("extract", _parse(ExtractOptions, arguments, "lgf extract", EXTRACT))


def apply(arguments: list[str]) -> int:
    """Run `lgf apply ARGUMENTS`; return the exit status."""
    options = _parse(ApplyOptions, arguments, "lgf apply", APPLY)
    return _run("apply", options.run, options.cache)


def train(arguments: list[str]) -> int:
    """Run `lgf train ARGUMENTS`; return the exit status."""
    return _run("train", parse_recipe(arguments))


def sample(arguments: list[str]) -> int:
    """Run `lgf sample ARGUMENTS`; return the exit status."""
    return _run("sample", _parse(SampleOptions, arguments, "lgf sample"))


def _run(command: str, *options: Any) -> int:
    """Call `run` of the command's module, which is imported only now; return the exit status."""
    importlib.import_module(f".{command}", __package__).run(*options)
    return 0


def _parse(kind: type[T], arguments: list[str], prog: str, description: str | None = None) -> T:
    """Return the options of a command, whose values are within the limits of their fields."""
    options = tyro.cli(with_help(kind), args=arguments, prog=prog, description=description)
    from_settings(kind, to_settings(options), "", option="--")
    return options


def parse_recipe(arguments: list[str]) -> Recipe:
    """Return the recipe that the command line names, with its overrides."""
    name, overrides = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else (None, arguments)
    if name is None and not {"-h", "--help"} & set(overrides):
        raise TrainerError(f"name a recipe first: a YAML file, or one of {', '.join(shipped_recipes())}")
    return tyro.cli(
        with_help(Recipe),
        prog=f"lgf train {name or 'RECIPE'}",
        description=TRAIN.format(", ".join(shipped_recipes())),
        default=read_recipe(name) if name else Recipe(),
        args=overrides,
        config=(tyro.conf.FlagConversionOff,),
    )


@dataclass
class ApplyOptions:
    """Add what a trained module makes of windows to their cache."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run, such as of the recipe moalign-stage1."""
    cache: Annotated[Path, tyro.conf.Positional]
    """Folder that lgf extract wrote. It need not be the one that the run was trained on."""


@dataclass
class ExtractOptions:
    """Make a cache of what training needs of videos: latents, text, and the teacher's Local Gram Flow."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Videos, folders of them, JSONL manifests, webdataset .tar shards or folders of those. A manifest has lines like
    {"video": "dog.mp4", "caption": "a dog runs", "box": [x0, y0, x1, y1]}; beside a video may stand its caption as .txt
    and such fields as .json."""
    output: Path
    """Folder of the cache. If there is one made with the same options, what it lacks is added."""
    model: str = "THUDM/CogVideoX-5b-I2V"
    """Pipeline to be trained (CogVideoX, Wan2.1, HunyuanVideo, LTX-Video): a folder, or a name on the Hugging Face hub
    (downloads its VAE and text encoders, once)."""
    frames: int | None = None
    """Frames of a window (default: what the model was made for, such as 49 for CogVideoX, 81 for Wan2.1)."""
    height: int | None = None
    """Height in pixels (default: the model's, 480)."""
    width: int | None = None
    """Width in pixels (default: the model's, 720)."""
    fps: Positive | None = None
    """Frames a second (default: as the model makes them, such as 8 for CogVideoX, 16 for Wan2.1)."""
    stride: Count = 20
    """Frames from one window's beginning to the next."""
    transforms: tuple[Literal["shuffle", "speed", "inpaint"], ...] = ()
    """Make each window again with these changes of its video (SAMA's): blocks shuffled, twice the speed, frames blacked out.
    A recipe trains on them if its data.transforms names them."""
    max_frames: int | None = None
    """No window goes beyond this frame of its video (default: 100, or the length of a window that is longer)."""
    allow_empty_captions: bool = False
    """Give videos without a caption an empty one, instead of leaving them out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of VAE, T5 and what is stored of them (default: bfloat16 on a GPU, float32 on a CPU). Teachers are float32."""
    vae_tiling: bool = False
    """Encode videos in tiles: takes less memory, and changes latents a little."""

    teachers: tuple[str, ...] = ()
    """Teachers by name: sam2, dino, or one of yours (docs/trainer.md). Default: what --teacher and --dino say."""
    teacher_options: tuple[str, ...] = ()
    """Settings of teachers, each as NAME.FIELD=VALUE, such as dino.model=facebook/dinov2-large."""
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
    detect_threshold: Share = 0.3
    """How sure GroundingDINO must be, between 0 and 1."""
    single_subject: bool = False
    """Leave out windows in whose first frame GroundingDINO finds more than one place, as SAM2VideoX's data has single
    subjects. Of boxes that overlap by more than half, the most certain one counts."""
    time: Literal["frames", "latent"] = "frames"
    """Frames that the teacher is compared in: all (the student is interpolated to them), or those of the latents."""
    window: Side = 7
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


@dataclass(frozen=True)
class SampleOptions:
    """Generate videos without and with a LoRA, from the same seed.

    Writes OUTPUT/without/NAME.mp4, OUTPUT/with/NAME.mp4 and OUTPUT/grid/NAME.png (frames of both, a row each). Every
    mp4 says in its metadata how it was made. Videos that are there, made alike, are kept: stop it whenever you like and
    run it again. On several GPUs: accelerate launch -m lgf_cli sample ...

    Everything is read from this machine, unless --model is the name of a model on the Hugging Face hub.

        lgf sample --model CogVideoX-5b-I2V --lora run --image dog.png --prompt "A dog runs." --output out
        lgf sample --model CogVideoX-5b-I2V --lora run --prompts vbench.jsonl --output out --samples 5
    """

    model: str
    """A pipeline (CogVideoX, Wan2.1, HunyuanVideo, LTX-Video): a folder as save_pretrained writes it, or a name on the hub such as
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
    lora_weight: Finite = 1.0
    """Factor on the LoRA; 1 is what was trained."""
    compare: bool = True
    """Also generate without the LoRA."""
    side_by_side: bool = False
    """Also write OUTPUT/both/NAME.mp4: without on the left, with on the right."""
    samples: Count = 1
    """Videos for each prompt, with seeds SEED, SEED + 1, ...; more than one are called NAME-0, NAME-1, ..."""
    seed: int = 0
    """Seed of the noise."""
    steps: Count = 50
    """Denoising steps. The paper's 50."""
    guidance: Finite | None = None
    """Classifier-free guidance scale; 1 is none. Default: 6, as in the paper; 5 for Wan2.1, 3 for LTX-Video."""
    negative_prompt: str = ""
    """What the video shall not show."""
    frames: int | None = None
    """Frames of the video, 1 more than a multiple of 8 (Wan2.1, HunyuanVideo: of 4). Default: the model's, such as 49."""
    height: int | None = None
    """Height in pixels. Default: the model's (480)."""
    width: int | None = None
    """Width in pixels. Default: the model's (720; 832)."""
    fit: Literal["refuse", "crop", "stretch"] = "refuse"
    """An image of other proportions than the video: say so and stop, take the largest part from its middle, or distort."""
    fps: Positive | None = None
    """Frames per second of the mp4. Default: as the model makes them, such as 8 for CogVideoX."""
    grid_frames: Count = 8
    """Columns of the grid."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and activations. auto: bfloat16 on an accelerator, float32 on a CPU."""
    device: str = "auto"
    """Such as cuda, cuda:1 or cpu. auto: the first accelerator, one for each process, or the CPU."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep weights in the CPU's memory but for the part at work (model) or its layer at work (sequential, slow)."""
    tile_vae: bool = False
    """Decode in tiles: less memory, slightly other pixels."""


@cache
def with_help(kind: type) -> type:
    """Put the docstrings of the fields, of nested dataclasses too, where tyro shows them, each as one paragraph; return `kind`.

    tyro itself keeps the line breaks that they have in the source.
    """
    for field in fields(kind):
        if is_dataclass(field.type):
            with_help(field.type)
    for entry in docstring_parser.parse_from_object(kind).params:
        text = " ".join(entry.description.split())
        hint = kind.__annotations__[entry.arg_name]
        kind.__annotations__[entry.arg_name] = Annotated[hint, tyro.conf.arg(help=text)]
    return kind
