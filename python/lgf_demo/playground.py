"""Everything that a tour of the trainer needs, tiny and random: nothing is downloaded, and a CPU is enough.

    python -m lgf_demo.playground tiny                     with a generated clip
    python -m lgf_demo.playground tiny --video dog.mp4     with one of yours
    python -m lgf_demo.playground tiny --family wan        with a Wan2.1, to be asked for 9 frames of 64 x 96 pixels;
                                                           hunyuan and ltx likewise
    python -m lgf_demo.playground tiny --no-image-to-video with a model that makes videos from text alone

    tiny/model           a CogVideoX image-to-video pipeline, as save_pretrained writes it, or what is asked for
    tiny/teacher         a SAM2
    tiny/dino            a DINOv2
    tiny/clip.mp4        the clip
    tiny/videos.jsonl    its name, a caption, and where the subject is when a window begins
    tiny/recipe.yaml     the paper's recipe, cut down to that model
    tiny/videomae, tiny/raft.safetensors (where torchvision is), tiny/moalign-stage1.yaml, tiny/moalign.yaml
                         the same for MoAlign's two stages
    tiny/clip.flow.npy, tiny/track4gen.yaml
                         the optical flow of the generated clip, and the recipe with the tracks that it gives

The weights are random: what comes out means nothing, but every step is the real one.
"""

if __name__ == "__main__":  # before the imports, so that the one of them that is missing is named in one line
    import sys

    import lgf_cli

    sys.exit(lgf_cli.run("python -m lgf_demo.playground", "lgf_demo.playground", sys.argv[1:], '"lgf-kernels[train]"'))

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from lgf_trainer.data.export import encode_video
from lgf_trainer.data.video import Video
from lgf_trainer.runtime.files import write_atomically
from lgf_trainer.runtime.progress import bars_only_on_terminals
from lgf_trainer.testing import (
    HEIGHT,
    WIDTH,
    make_tiny_dino,
    make_tiny_hunyuan,
    make_tiny_ltx,
    make_tiny_pipeline,
    make_tiny_raft,
    make_tiny_teacher,
    make_tiny_videomae,
    make_tiny_wan,
)
from torch.nn.functional import interpolate

FPS, STRIDE = 8, 20
SPEED = 2  # pixels a frame
CAPTION = "It moves."

SAM2VIDEOX = """\
base: {base}
model: {{path: {model}, dtype: float32, rank: 8, alpha: 4}}
data: {{cache: {cache}}}
alignment: {{block: 1}}
projector: {{hidden: 32, widths: [32, 16, 16], groups: 8}}
optimisers: {{lora: {{rate: 1e-2, warmup: 5}}, projector: {{warmup: 5}}}}
training: {{steps: 30, batch: 2, precision: no}}
run: {{output: {run}, save_every: 1}}
"""
STAGE1 = """\
base: moalign-stage1
data: {{cache: {motion_cache}}}
task_options: {{held_out: 0}}
optimisers: {{full: {{rate: 1e-3}}}}
training: {{steps: 30, batch: 2, precision: no}}
run: {{output: {motion_run}, save_every: 10}}
"""
MOALIGN = """\
base: {moalign}
model: {{path: {model}, dtype: float32}}
data: {{cache: {motion_cache}}}
alignment: {{block: 1}}
projector: {{reduction: 2}}
optimisers: {{full: {{rate: 1e-3}}}}
training: {{steps: 30, batch: 2, precision: no}}
run: {{output: {moalign_run}, save_every: 10}}
"""
TRACK4GEN = """\
base: recipe.yaml
data: {{cache: {track_cache}}}
alignment: {{loss: points}}
run: {{output: {track_run}}}
"""

#: Family -> the recipes that are cut down, and what writes its model.
FAMILIES = {
    "cogvideox": ("sam2videox", "moalign", make_tiny_pipeline),
    "wan": ("wan2.1-sam2videox", "wan2.1-moalign", make_tiny_wan),
    "hunyuan": ("hunyuan-sam2videox", "moalign", make_tiny_hunyuan),
    "ltx": ("ltx-sam2videox", "moalign", make_tiny_ltx),
}


def make_playground(
    folder: Path, video: Path | None = None, family: str = "cogvideox", image_to_video: bool = True
) -> None:
    """Write the models, the clip or a copy of `video`, and the recipes into a folder. Flow is known of the clip alone.

    Raises:
        TrainerError: `video` cannot be read.
    """
    if video is not None:
        Video(video, FPS)  # says what is wrong with it before anything is written
    if video is None:
        frames = STRIDE + 9
        write_atomically(folder / "clip.mp4", encode_video(moving_square(frames).numpy(), FPS, {}))
        with io.BytesIO() as flow:
            np.save(flow, flow_of_square(frames).numpy())
            write_atomically(folder / "clip.flow.npy", flow.getvalue())
    else:
        write_atomically(folder / "clip.mp4", video.read_bytes())
        (folder / "clip.flow.npy").unlink(missing_ok=True)  # of another clip
    clip = Video(folder / "clip.mp4", FPS)
    height, width = clip.size
    middle = [width // 4, height // 4, width - width // 4, height - height // 4]
    boxes = {start: middle for start in range(0, clip.frames, STRIDE)}
    line = {"video": "clip.mp4", "caption": CAPTION, "box": boxes}
    base, moalign, make_model = FAMILIES[family]
    make_model(folder / "model", image_to_video=image_to_video)
    make_tiny_teacher(folder / "teacher")
    make_tiny_dino(folder / "dino")
    make_tiny_videomae(folder / "videomae")
    with suppress(ImportError):
        make_tiny_raft(folder / "raft.safetensors")
    write_atomically(folder / "videos.jsonl", (json.dumps(line) + "\n").encode())
    names = ("model", "cache", "run", "motion-cache", "motion-run", "moalign-run", "track-cache", "track-run")
    paths = {name.replace("-", "_"): json.dumps(str(folder / name)) for name in names}  # which YAML understands too
    recipes = {"recipe": SAM2VIDEOX, "moalign-stage1": STAGE1, "moalign": MOALIGN, "track4gen": TRACK4GEN}
    for name, recipe in recipes.items():
        text = recipe.format(base=base, moalign=moalign, **paths)
        write_atomically(folder / f"{name}.yaml", text.encode())


def moving_square(frames: int) -> torch.Tensor:
    """A clip (frames, 64, 96, 3) of uint8: a patterned square moves to the right, over a ground with a pattern of its own."""
    rng = torch.Generator().manual_seed(0)

    def pattern(height: int, width: int) -> torch.Tensor:
        coarse = torch.rand(1, 3, height // 8, width // 8, generator=rng)
        return (255 * interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]).byte().permute(1, 2, 0)

    ground, square = pattern(HEIGHT, WIDTH), pattern(32, 32)
    clip = ground.repeat(frames, 1, 1, 1)
    for t in range(frames):
        rows, columns = square_at(t)
        clip[t, rows, columns] = square[:, : WIDTH - columns.start]
    return clip


def square_at(t: int) -> tuple[slice, slice]:
    """The rows and columns of the square in a frame."""
    left = 4 + SPEED * t
    return slice(16, 48), slice(left, left + 32)


def flow_of_square(frames: int) -> torch.Tensor:
    """Flow of `moving_square` to the next frame and back, (2, frames - 1, 2, 64, 96) of float16: u to the right, then v."""
    flow = torch.zeros(2, frames - 1, 2, HEIGHT, WIDTH, dtype=torch.float16)
    for t in range(frames - 1):
        flow[0, t, 0][square_at(t)] = SPEED
        flow[1, t, 0][square_at(t + 1)] = -SPEED
    return flow


def main(arguments: list[str]) -> int:
    """`python -m lgf_demo.playground FOLDER [--video FILE]`."""
    tyro.cli(_write, prog="python -m lgf_demo.playground", description=__doc__, args=arguments)
    return 0


def _write(
    folder: tyro.conf.Positional[Path],
    /,
    video: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    family: Literal[*FAMILIES] = "cogvideox",
    image_to_video: bool = True,
) -> None:
    """Write tiny models, a clip and a recipe into a folder.

    Args:
        folder: Where to.
        video: A clip of yours instead of a generated one; the subject is taken to be in its middle.
        family: Of the video model.
        image_to_video: The model makes videos from a first frame, not from text alone.
    """
    with bars_only_on_terminals():
        make_playground(folder, video, family, image_to_video)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
