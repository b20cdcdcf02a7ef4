"""Where videos come from: files, folders, JSONL manifests, and webdataset shards.

Beside a video NAME.mp4, in a folder as in a shard, may stand NAME.txt, its caption, and NAME.json, whose fields are those
of a manifest's line:

    {"video": "dog.mp4", "caption": "a dog runs", "box": [10, 20, 300, 400]}
    {"video": "cat.mp4", "caption": "a cat jumps", "box": {"0": [10, 20, 300, 400], "20": [40, 20, 330, 400]}}
    {"video": "cow.mp4", "caption": "a cow walks", "mask": {"0": "masks/cow-0.png", "20": "masks/cow-20.png"}}

A box is x0, y0, x1, y1 in pixels of the video as displayed; a mask is a picture of the same proportions that is neither
black nor transparent where the subject is. Each belongs to the first frame of a window: to the one that begins with the
video, or by the number of that frame at the extraction's rate. Paths are relative to the file that they stand in.
"""

import errno
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from ..runtime.errors import TrainerError, explained

SUFFIXES = {
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".mxf", ".wmv", ".asf",
    ".flv", ".ogv", ".3gp", ".gif", ".f4v", ".qt", ".3g2", ".divx", ".m1v", ".m2v", ".mpe", ".dv", ".rm", ".rmvb", ".nut", ".y4m",
    ".ivf", ".h264", ".264", ".hevc", ".265",
}  # fmt: skip
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")  # all but .tar are refused by name

EXAMPLE = '{"video": "dog.mp4", "caption": "a dog runs"}'

Opener = Callable[[], AbstractContextManager[BinaryIO]]
Box = tuple[float, float, float, float]


def _on_disk(name: str) -> Opener | None:
    return partial(open, name, "rb") if Path(name).is_file() else None


class Clip(NamedTuple):
    """A video, and what is said about it."""

    name: str
    open: Opener
    caption: str | None
    boxes: dict[int, Box]  # by the first frame of the window
    masks: dict[int, Opener]
    find: Callable[[str], Opener | None] = _on_disk  # other files, by names such as the video's

    def sidecar(self, suffix: str) -> Opener | None:
        """Return what opens NAME + suffix beside NAME.mp4, or None where there is no such file."""
        return self.find(str(PurePosixPath(self.name).with_suffix("")) + suffix)


def list_clips(sources: Sequence[Path]) -> list[Clip]:
    """The videos of all sources, in an order that depends on names alone.

    Raises:
        TrainerError: there is no such source, none holds a video, or a manifest or shard is not what it should be.
    """
    clips = [clip for source in sources for clip in _clips_of(Path(source))]
    if not clips:
        raise TrainerError(
            f"there is no video in {', '.join(map(str, sources))}. Give folders with {', '.join(sorted(SUFFIXES))} or .tar "
            f"files, or a manifest .jsonl with lines like {EXAMPLE}"
        )
    return clips


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and those below, in order of their names, without hidden ones.

    Links to folders are followed, except back up; a link to nothing is listed, so that reading it says so.
    """

    def below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        here = folder.resolve()
        if here in above:
            return
        for path in folder.iterdir():
            if path.is_dir():
                yield from below(path, (*above, here))
            elif not path.name.startswith(".") and (path.is_file() or path.is_symlink()):
                yield path

    try:
        return sorted(below(folder, ()))
    except OSError as error:
        raise TrainerError(
            f"{error.filename} cannot be read ({error.strerror}). Mend that, or move it out of {folder}"
        ) from error


def json_lines(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the line, keys and values) of a file with JSON objects such as `example`, one a line."""
    # Unlike str.splitlines, split("\n") leaves a line separator inside a text alone.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, _fields(line, f"{path}, line {number}", example)


def read_text(path: Path) -> str:
    """Return the text of a file, without the mark that some editors begin it with."""
    with explained(f"{path} cannot be read", OSError, UnicodeDecodeError, way_out="Give a text file in UTF-8"):
        return path.read_text("utf-8-sig")


def _clips_of(source: Path) -> Iterator[Clip]:
    if source.is_dir():
        files = files_below(source)
        yield from _sidecars({path.as_posix(): partial(path.open, "rb") for path in files}, _on_disk)
        for path in files:
            if path.name.lower().endswith(ARCHIVES):
                yield from _shard(path)
    elif not source.is_file():
        raise TrainerError(f"{source}: no such file or folder. Give videos, folders, .jsonl manifests or .tar shards")
    elif source.suffix.lower() in (".jsonl", ".json"):
        yield from _manifest(source)
    elif source.name.lower().endswith(ARCHIVES):
        yield from _shard(source)
    elif source.suffix.lower() in SUFFIXES:
        beside = [source, *(source.with_suffix(suffix) for suffix in (".txt", ".json"))]
        yield from _sidecars({path.as_posix(): partial(path.open, "rb") for path in beside if path.is_file()}, _on_disk)
    else:
        raise TrainerError(f"{source} is neither a video, a folder, a .jsonl manifest nor a .tar shard")


def _manifest(path: Path) -> Iterator[Clip]:
    for number, fields in json_lines(path, EXAMPLE):
        where = f"{path}, line {number}"
        if not isinstance(fields.get("video"), str):
            raise TrainerError(f"{where} names no video. A line is like {EXAMPLE}")
        video = path.parent / fields["video"]
        yield _clip(
            str(video), partial(open, video, "rb"), fields, lambda name: partial(open, path.parent / name, "rb"), where
        )


def _shard(path: Path) -> Iterator[Clip]:
    wrong, way_out = f"{path} is not an uncompressed .tar file", "Unpack it, or leave it out"
    with explained(wrong, tarfile.TarError, OSError, way_out=way_out), tarfile.open(path, "r:") as archive:
        members = sorted((m for m in archive if m.isfile() or m.islnk() or m.issym()), key=lambda m: m.name)
    hidden = (m for m in members if not PurePosixPath(m.name).name.startswith("."))
    files = {f"{path.as_posix()}/{m.name}": partial(_open_member, path, m) for m in hidden}
    yield from _sidecars(files, files.get)


@contextmanager
def _open_member(archive: Path, member: tarfile.TarInfo) -> Iterator[BinaryIO]:
    with tarfile.open(archive, "r:") as tar:
        try:
            file = tar.extractfile(member)  # None: a link to a folder
        except KeyError:
            file = None
        if file is None:
            raise OSError(errno.ENOENT, f"a link to {member.linkname}, which is no file of the archive")
        with file:
            yield file


def _sidecars(files: dict[str, Opener], find: Callable[[str], Opener | None]) -> Iterator[Clip]:
    """The videos among files, by their names in a folder or a shard, with what stands beside them."""
    for name, opener in files.items():
        path = PurePosixPath(name)
        if path.suffix.lower() not in SUFFIXES:
            continue
        about, text = str(path.with_suffix(".json")), str(path.with_suffix(".txt"))
        fields = _fields(_read(files[about], about), about) if about in files else {}
        if text in files:
            fields.setdefault("caption", _read(files[text], text).strip())
        clip = _clip(name, opener, fields, lambda mask, folder=path.parent: find(str(folder / mask)), about)
        yield clip._replace(find=find)


def _read(opener: Opener, name: str) -> str:
    with explained(f"{name} cannot be read", OSError, way_out="Mend that, or move it away"), opener() as file:
        return file.read().decode("utf-8-sig", errors="replace")


def of_whole_characters(text: str) -> str:
    """With "?" for half of a pair of surrogates, which is no character: where a text was cut in the middle of an emoji."""
    return text.encode("utf-8", errors="replace").decode()


def _fields(text: str, where: str, example: str = '{"caption": "a dog runs"}') -> dict[str, Any]:
    with explained(f"{where} is not JSON", json.JSONDecodeError):
        fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TrainerError(f"{where} is not a JSON object such as {example}")
    return fields


def _clip(
    name: str, opener: Opener, fields: dict[str, Any], beside: Callable[[str], Opener | None], where: str
) -> Clip:
    caption = fields.get("caption")
    if not isinstance(caption, str | None):
        raise TrainerError(f"{where}: the caption must be a text, and is {caption!r}")
    caption = None if caption is None else of_whole_characters(caption)
    boxes = {start: _box(box, where) for start, box in _by_start(fields.get("box"), where).items()}
    masks = {start: beside(str(mask)) for start, mask in _by_start(fields.get("mask"), where).items()}
    if None in masks.values():
        raise TrainerError(f"{where}: there is no such mask as {fields['mask']!r}")
    return Clip(name, opener, caption, boxes, masks)


def _by_start(value: Any, where: str) -> dict[int, Any]:
    """What is given for windows by their first frames, or for the first window alone."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {0: value}
    try:
        return {int(start): item for start, item in value.items()}
    except ValueError as error:
        raise TrainerError(
            f"{where}: boxes and masks are given by the number of a window's first frame, such as "
            f'{{"0": ..., "20": ...}}, not by {", ".join(map(repr, value))}'
        ) from error


def _box(value: Any, where: str) -> Box:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not numbers or not (value[0] < value[2] and value[1] < value[3]):
        raise TrainerError(f"{where}: a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1 in pixels, not {value!r}")
    return tuple(float(v) for v in value)


def find_videos(folder: Path, at_least: int = 1) -> list[Path]:
    """Return the videos in a folder and those below, in order of their names; refuse a folder with fewer than `at_least`."""
    if not folder.is_dir():
        raise TrainerError(f"{folder}: no such folder. Give a folder of videos")
    videos = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]
    if len(videos) < at_least:
        raise TrainerError(f"{folder} has {len(videos)} videos, and {at_least} at least are needed")
    return videos
