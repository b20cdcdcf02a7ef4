"""One run for one folder."""

import fcntl
from pathlib import Path
from typing import TextIO

from .errors import TrainerError


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
