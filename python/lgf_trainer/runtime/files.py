"""Atomic files with the trainer's errors, their hashes, and the lock of a folder."""

import functools
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor

from lgf_kernels.core.files import UNFINISHED, whole_file, write_whole

from .errors import TrainerError, explained, is_disk_full

ABANDONED = 3600.0  # seconds: no file takes so long to be written

#: safetensors' names of types.
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def claim(folder: Path) -> AcquireReturnProxy:
    """Keep other processes out of a folder in a `with` block, or as long as what is returned is kept.

    The lock is the kernel's, so that a killed process leaves none behind.

    Raises:
        TrainerError: another process has the folder, or it cannot be written to.
    """
    with explained(f"{folder} cannot be written to", OSError, way_out="Name a folder that can be"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise TrainerError(
                f"another run is writing to {folder}. Wait until it has ended, or name another folder"
            ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile.

    Raises:
        TrainerError: the disk is full, or the folder may not be written to.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        if is_disk_full(error):
            raise TrainerError(f"{path}: the disk is full. Make room and run again: what is there is kept") from error
        raise TrainerError(
            f"{path} cannot be written ({error.strerror}). Name a folder that you may write to"
        ) from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file, whole or not at all; the SHA-256 of it, so that nobody has to read it for that.

    safetensors' own writer does not say what it writes, and would hold all of it a second time.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"} | (metadata or {})}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with whole_file(path) as file:
        for part in (len(text).to_bytes(8, "little"), text, *(_bytes(tensor) for tensor in tensors.values())):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def remove_leftovers(folder: Path, age: float = ABANDONED) -> None:
    """Remove what `whole_file` left in a folder when its process was killed.

    Whether a process still runs cannot be known across nodes that share the folder: their process numbers mean nothing here, and
    not all shared file systems have locks. So a file is taken for left behind when it has not grown for an hour, by the clock
    of the file system: this node's may differ. `age` is 0 where a lock says that nobody writes.
    """
    leftovers = [path for path in folder.glob(".*") if UNFINISHED.fullmatch(path.name)]
    if not leftovers:
        return
    probe = folder / f".clock.{uuid4().hex}"
    with suppress(OSError):
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        for path in leftovers:
            with suppress(OSError):  # another process may be removing it too
                if now - path.stat().st_mtime >= age:
                    path.unlink()


def must_be_writable(folder: Path) -> None:
    """Find out before hours of work whether their result can be kept."""
    probe = folder / f".probe-{uuid4().hex}"
    with explained(f"{folder} cannot be written to", OSError, way_out="Name a folder that can be, or make room"):
        with whole_file(probe) as file:
            file.write(b"a")
        probe.unlink()


@functools.lru_cache(maxsize=1024)
def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, read once in a process."""
    return file_hash(path)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
