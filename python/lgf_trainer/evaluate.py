"""Evaluation of videos: motion scores from VBench's results, FVD with a network of yours, pictures of motion and tracks.

And of encoders that may become teachers.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .runtime.errors import TrainerError

Paths = tyro.conf.Positional[tuple[Path, ...]]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]


def main(arguments: list[str]) -> int:
    """Run `lgf eval ARGUMENTS`; 0 when it has printed or written what was asked for."""
    commands = {"vbench": vbench, "fvd": fvd, "motion": motion, "tracks": tracks, "encoder": encoder}
    tyro.extras.subcommand_cli_from_dict(commands, prog="lgf eval", description=__doc__, args=arguments)
    return 0


def vbench(results: Paths, /, output: File = None) -> None:
    """Compute the Motion and Extended Motion Score (SAM2VideoX, appendix A.1) from result files of VBench-I2V, in percent.

    Run VBench in an environment of its own (it pins old packages), for the dimensions subject_consistency,
    background_consistency, motion_smoothness, i2v_subject, i2v_background and dynamic_degree. BC, SC, MS, I2V-S and
    I2V-B are its scores as they are; the two means take them normalised by VBench's own table. A model that moves less
    than the first one is marked: still videos are consistent for nothing.

        lgf eval vbench base/ lora/ sam2videox/

    Args:
        results: Result files, or folders of *_eval_results.json, one for each model; the base model first.
        output: Also write the numbers there, as JSON.
    """
    from .evaluation import vbench as scores
    from .runtime.files import write_atomically

    if not results:
        raise TrainerError("eval vbench: name result files of VBench-I2V, or folders of them")
    names = [_name(path) for path in results]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, results, strict=True)]
    rows = [scores.score_row(name, scores.read_results(path)) for name, path in zip(names, results, strict=True)]
    if output is not None:
        write_atomically(output, json.dumps(rows, indent=1).encode())
    print(scores.report(rows))


def fvd(
    real: tyro.conf.Positional[Path],
    generated: Paths,
    /,
    network: Path,
    frames: int = 16,
    fps: float = 8.0,
    size: tuple[int, int] = (224, 224),
    sample: int | None = None,
    seed: int = 0,
    batch: int = 8,
    device: str = "auto",
    cache: Folder = None,
    output: File = None,
) -> None:
    """Compute the Fréchet Video Distance between folders of videos, in the features of a network that you bring.

    The network is a TorchScript file: (batch, 3, frames, height, width) in [-1, 1] -> (batch, features). The I3D that
    is usual for FVD (i3d_torchscript.pt) works as it is; for the content-debiased FVD script a VideoMAE, with its
    normalisation inside. Nothing is downloaded.

    FVD depends on the network, the number of videos, the frames, their rate and size: compare only what was measured
    alike. Few videos make it larger. Of several generated folders the first is what the others are compared with.

        lgf eval fvd real/ out/without out/with --network i3d_torchscript.pt --cache fvd-cache --output fvd.json
        lgf eval fvd training-set/ out/with --network i3d_torchscript.pt --sample 200 --output fvd.json

    Args:
        real: Folder of videos.
        generated: Folders of videos, such as OUTPUT/with of lgf sample.
        network: TorchScript file.
        frames: Frames of each video, from its first on; shorter videos are left out.
        fps: Rate at which all folders are read.
        size: Height and width that every frame is resized to.
        sample: Take so many of the real videos, drawn by the seed (SAM2VideoX: 200 of the training set). The output says
            which.
        seed: Of the sample.
        batch: Videos for one run of the network.
        device: Such as cuda or cpu. auto: the first GPU, or the CPU.
        cache: Keep features there by the content of the video: a run that was stopped goes on, a second one is quick.
        output: Also write the numbers there, as JSON, and which videos they are of.
    """
    from .data.cache import WindowCache
    from .data.sources import find_videos
    from .evaluation import fvd as scores
    from .runtime.distributed import choose_device
    from .runtime.files import content_hash, write_atomically

    if not generated:
        raise TrainerError("eval fvd: name a folder of real videos, and one or more of generated ones")
    _must_be_at_least(1, frames=frames, size=min(size), batch=batch)
    if not 0 < fps < math.inf:
        raise TrainerError(f"--fps must be finite and above 0, got {fps}")
    _must_be_a_seed(seed)
    _must_be_different(real, *generated)
    folders = [find_videos(folder, at_least=2) for folder in (real, *generated)]  # a covariance takes two
    if sample is not None:
        _must_be_at_least(2, sample=sample)
        if output is None:
            raise TrainerError("--sample draws videos, and --output FILE says which they were. Give it")
        folders[0] = scores.sampled(folders[0], sample, seed)
    model = scores.Network(network, choose_device(device))
    settings = {"features": "fvd", "network": content_hash(network), "frames": frames, "fps": fps, "size": size}
    kept = WindowCache(cache, settings) if cache else None
    sides = [scores.features_of(videos, model, scores.Clips(frames, fps, size), batch, kept) for videos in folders]
    distances = [scores.frechet_distance(sides[0].gaussian, side.gaussian) for side in sides[1:]]
    if output is not None:
        first = {"fvd": distances[0], "real": sides[0].gaussian.count, "generated": sides[1].gaussian.count}
        drawn = {} if sample is None else {"sample": sample, "seed": seed}
        folders = {
            str(folder): {"fvd": distance, "videos": side.taken} | {fact: side.span(fact) for fact in scores.FACTS}
            for folder, side, distance in zip((real, *generated), sides, (None, *distances), strict=True)
        }
        numbers = first | settings | drawn | {"folders": folders}
        write_atomically(output, json.dumps(numbers, indent=1).encode())
    print(
        scores.report([str(folder) for folder in (real, *generated)], sides, distances, scores.Clips(frames, fps, size))
    )


def motion(
    inputs: Paths,
    /,
    output: Path = Path("motion"),
    reading: Literal["expected", "strongest"] = "expected",
    pairs: int = 4,
    grid: tuple[int, int] = (30, 45),
    frames: int = 49,
    windows: int = 4,
    control: tuple[Literal["shuffle", "speed", "inpaint"], ...] = (),
) -> None:
    """Draw the motion that Local Gram Flow shows, and measure it.

    Of a video: from its pixels, each token described by the 24 x 24 around it. Of a cache that lgf extract made: from the
    teacher's logits, both directions together and each by itself, which shows whether the teacher follows the subject
    before a training run is spent on it. Writes OUTPUT/NAME.png: arrows over the frames, and colours by direction.

    The certainty of a token is 1 less the entropy of its window's distribution over the largest there could be. Below 30 %
    too many positions are alike, and no motion can be read: of plain surfaces the mean displacement points inwards from
    their edge. Such tokens are grey and are not counted.

        lgf eval motion dog.mp4 out/with --output motion
        lgf eval motion cache --windows 8
        lgf eval motion dog.mp4 --control shuffle speed inpaint

    Args:
        inputs: Videos, folders of videos, and caches.
        output: Folder for the pictures.
        reading: The mean displacement under the window's distribution (temperature 0.1), or that of its largest logit.
        pairs: Pairs of frames to draw, from the first to the last.
        grid: Rows and columns of tokens for a video; CogVideoX's at 480 x 720 pixels.
        frames: Frames of a video to look at, at 8 per second.
        windows: Windows of a cache to draw, over their frames if the videos are still where lgf extract read them.
        control: Of videos, also change them in a known way, draw that as NAME-CONTROL.png, and say whether the motion shows
            it. shuffle: 2 x 2 x 2 blocks change places. speed: twice as fast, where the mean displacement of
            --reading expected falls a fifth to a third short of the way over two frames, as a spread distribution has its
            mean nearer to 0 the longer the way; that of --reading strongest does not. inpaint: three frames in ten are black.
    """
    from .data.sources import find_videos
    from .evaluation import pictures as motion_pictures
    from .runtime.files import write_atomically

    if not inputs:
        raise TrainerError("eval motion: name videos, or caches that lgf extract made")
    _must_be_at_least(1, pairs=pairs, grid=min(grid), windows=windows)
    _must_be_at_least(2, frames=frames)
    if max(grid) < 2:
        raise TrainerError("--grid 1 1 is one token, which has nowhere to move to. Give more rows or columns")
    drawn = set()
    for path in inputs:
        if (path / "settings.json").exists():
            if control:
                raise TrainerError(f"--control changes videos, and {path} is a cache. Give the videos")
            found = motion_pictures.of_cache(path, reading, windows)
        else:
            videos = find_videos(path) if path.is_dir() else [path]
            found = (
                clip for video in videos for clip in motion_pictures.of_video(video, reading, grid, frames, control)
            )
        for clip in found:
            picture = output / f"{clip.name}.png"
            if picture in drawn:
                raise TrainerError(
                    f"two inputs would both become {picture}. Draw them in two runs, with another --output"
                )
            drawn.add(picture)
            write_atomically(picture, motion_pictures.draw(clip, pairs))
            mean, moving, readable = motion_pictures.speed(clip)
            print(
                f"{picture}: motion can be read in {readable:.0%} of the tokens; of these {moving:.0%} move by more than half "
                f"a token, all by {mean:.2f} tokens a frame"
            )
            if clip.note:
                print(f"    {clip.note}")


def tracks(
    caches: Paths,
    /,
    output: Path = Path("tracks"),
    frames: int = 5,
    points: int = 256,
    windows: int = 4,
) -> None:
    """Pictures of the tracks in a cache that lgf extract --teachers tracks made, and how long they last.

    Writes OUTPUT/WINDOW.png: points over the frames, coloured by where they begin, with the way they came. Look at them before
    a training run: tracks that slide over what they should follow teach the model to do so.

        lgf eval tracks cache --windows 8

    Args:
        caches: Folders that lgf extract wrote.
        output: Folder for the pictures.
        frames: Frames to draw, from the first to the last; over the video if it is still where lgf extract read it.
        points: Tracks to draw, taken evenly from all.
        windows: Windows of a cache to draw.
    """
    from .evaluation import tracks as pictures
    from .runtime.files import write_atomically

    if not caches:
        raise TrainerError("eval tracks: name caches that lgf extract --teachers tracks made")
    _must_be_at_least(1, frames=frames, points=points, windows=windows)
    for cache in caches:
        for window in pictures.of_cache(cache, windows):
            picture = output / f"{window.name}.png"
            write_atomically(picture, pictures.draw(window, frames, points))
            print(f"{picture}: {pictures.summary(window)}")


def encoder(
    inputs: Paths,
    /,
    output: Path = Path("encoder"),
    features: tuple[str, ...] = (),
    teachers: tuple[str, ...] = (),
    teacher_options: tuple[str, ...] = (),
    clusters: tuple[int, ...] = (2, 4, 8, 16, 32),
    unit: bool = True,
    windows: int = 100,
    patches: int = 20_000,
    seed: int = 0,
    grid: tuple[int, int] = (30, 45),
    frames: int = 49,
    device: str = "auto",
) -> None:
    """Measure encoders before a run is spent on them: how well they tell things apart, how much fine detail they have.

    Inter-to-intra cluster ratio (IICR): the least distance of two of k clusters of a video's patches over the largest spread
    of one. Frequency gap: log-magnitude of high spatial frequencies less that of frequency 0. Align4Gen relates both to how
    well an encoder teaches a model that is trained from scratch. Writes OUTPUT/encoder.png and OUTPUT/encoder.json.

        lgf eval encoder cache                                    all features in a cache that lgf extract made
        lgf eval encoder cache --features dino sam2_image
        lgf eval encoder videos/ --teachers dino sam2-image --teacher-options dino.model=FOLDER sam2-image.model=FOLDER

    Args:
        inputs: Caches; with --teachers, videos and folders of videos.
        output: Folder for the picture and the numbers.
        features: Of a cache: names of features, as in a recipe's alignment.features. Default: all.
        teachers: Make features of videos with these teachers of lgf extract, such as dino.
        teacher_options: Settings of those, each as NAME.FIELD=VALUE, such as dino.model=FOLDER.
        clusters: Numbers of clusters k.
        unit: Normalise every patch to length 1 for the ratio, so that encoders of different scales compare.
        windows: Windows of each cache, or videos, to measure.
        patches: Patches of a video that are clustered at most, drawn by the seed.
        seed: Of that draw and of the clusters' first centres.
        grid: Rows and columns of tokens for videos.
        frames: Frames of a video to look at, at 8 per second.
        device: Of the teachers, such as cuda or cpu. auto: the first GPU, or the CPU.
    """
    from .data.sources import find_videos
    from .evaluation import encoder_report as report
    from .runtime.distributed import choose_device
    from .runtime.files import write_atomically
    from .runtime.progress import progress

    if not inputs:
        raise TrainerError("eval encoder: name caches that lgf extract made, or videos and --teachers")
    if teachers and features:
        raise TrainerError("--features are those of a cache, and --teachers make them of videos. Give one of them")
    _must_be_at_least(1, windows=windows, grid=min(grid), frames=frames)
    _must_be_a_seed(seed)
    _must_be_at_least(2, clusters=min(clusters, default=0), patches=patches)
    if teachers:
        videos = [video for path in inputs for video in (find_videos(path) if path.is_dir() else [path])][:windows]
        loaded = report.load_teachers(teachers, teacher_options, choose_device(device))
        found = report.of_videos(videos, loaded, grid, frames)
    else:
        found = (window for folder in inputs for window in report.of_cache(folder, features, windows))
    found = progress(found, "measuring", unit="video")
    measures = report.measured(found, clusters, unit=unit, patches=patches, seed=seed)
    numbers = {name: own.row() for name, own in measures.items()} | {"unit": unit, "patches": patches, "seed": seed}
    write_atomically(output / "encoder.png", report.draw(measures))
    write_atomically(output / "encoder.json", json.dumps(numbers, indent=1).encode())
    print(report.table(measures))
    print(f"\n{output / 'encoder.png'}, {output / 'encoder.json'}")


def _must_be_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise TrainerError(f"--{name} must be at least {least}, got {value}")


def _must_be_a_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**63:
        raise TrainerError(f"--seed must fit into 64 bits, from -2^63 to 2^63 - 1, got {seed}")


def _must_be_different(*folders: Path) -> None:
    first: dict[Path, Path] = {}
    for folder in folders:
        same = first.setdefault(folder.resolve(), folder)
        if same is not folder:
            again = f"{folder} is given twice" if str(same) == str(folder) else f"{same} and {folder} are one folder"
            raise TrainerError(f"{again}, whose distance from itself is 0. Name each folder once")


def _name(path: Path) -> str:
    return path.resolve().name.removesuffix(".json").removesuffix("_eval_results")
