"""Index of a large cache: the names of its windows in one file, so that a folder of thousands need not be listed.

    FOLDER/windows.index     a line with the SHA-256 of the rest; as JSON, the names, and the time of the folder's last change

An index is a copy of one listing. It counts only while the folder still has the time of change of that listing: whoever adds,
replaces or removes a window outdates it, and readers list the folder as they do where there is none. Several writers may each
write it, for every one is whole and says itself when it is outdated.
"""

import hashlib
import json
import time
from pathlib import Path
from uuid import uuid4

from ..runtime.files import write_atomically

LARGE = 1000  # windows; smaller folders are listed as fast
COARSE = 2.0  # seconds: the coarsest times that file systems give to folders


def listed(folder: Path) -> list[str]:
    """Return the names of the windows in a folder, in order."""
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def write_index(folder: Path, index: Path) -> None:
    """Write the index of a large folder, unless another process is writing to it or it does not tell when it has changed."""
    if len(listed(folder)) < LARGE:
        return
    probe = folder / f".clock.{uuid4().hex}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    changed = folder.stat()
    if abs(changed.st_mtime - now) > COARSE:
        return
    time.sleep(COARSE)  # a later change has another time
    names = listed(folder)
    if folder.stat().st_mtime_ns == changed.st_mtime_ns:
        text = json.dumps({"changed": changed.st_mtime_ns, "windows": names}).encode()
        write_atomically(index, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def read_index(folder: Path, index: Path) -> list[str] | None:
    """Return the names of the windows in a folder by its index; None if there is none, or it is damaged or outdated."""
    try:
        digest, _, text = index.read_bytes().partition(b"\n")
        changed = folder.stat().st_mtime_ns
    except OSError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    content = json.loads(text)
    return content["windows"] if content["changed"] == changed else None
