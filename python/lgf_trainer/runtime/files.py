"""Files that are whole or not there, their hashes, and one run for one folder."""

import fcntl
import functools
import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from .errors import TrainerError, is_disk_full

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")  # names of files that are being written
ABANDONED = 3600.0  # seconds: no file takes so long to be written, and no clocks of nodes differ by so much


def claim(folder: Path) -> TextIO:
    """Keep other processes out of a folder for as long as what is returned stays open: at most until this one ends.

    The lock is the kernel's, so that a killed process leaves none behind, and is not handed on to workers.

    Raises:
        TrainerError: another process has the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
    except OSError as error:
        raise TrainerError(f"{folder} cannot be written to ({error.strerror}). Name a folder that can be") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise TrainerError(
            f"another run is writing to {folder}. Wait until it has ended, or name another folder"
        ) from error
    except OSError:
        pass  # a file system without locks
    return file


@functools.lru_cache(maxsize=1024)
def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, read once in a process."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile.

    Raises:
        TrainerError: the disk is full, or the folder may not be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # no other process, on any node, has this name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if is_disk_full(error):
            raise TrainerError(f"{path}: the disk is full. Make room and run again: what is there is kept") from error
        raise TrainerError(
            f"{path} cannot be written ({error.strerror}). Name a folder that you may write to"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder when its process was killed.

    Whether a process still runs cannot be known across nodes that share the folder: their process numbers mean nothing here, and
    not all shared file systems have locks. So a file is taken for left behind when it has not grown for an hour.
    """
    for path in folder.glob(".*"):
        with suppress(OSError):  # another process may be removing it too
            if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def must_be_writable(folder: Path) -> None:
    """Find out before hours of work whether their result can be kept.

    Raises:
        TrainerError: the disk is full, or the folder may not be written to.
    """
    probe = folder / f".probe-{uuid4().hex}"
    write_atomically(probe, b"a")
    probe.unlink()
