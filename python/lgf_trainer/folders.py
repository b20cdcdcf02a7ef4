"""The videos of a folder."""

from pathlib import Path

from .errors import TrainerError
from .sources import SUFFIXES


def find_videos(folder: Path, at_least: int = 1) -> list[Path]:
    """All videos in a folder and those below, in order of their names.

    Raises:
        TrainerError: there is no such folder, or it has fewer.
    """
    if not folder.is_dir():
        raise TrainerError(f"{folder}: no such folder. Give a folder of videos")
    videos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(videos) < at_least:
        raise TrainerError(f"{folder} has {len(videos)} videos, and {at_least} at least are needed")
    return videos
