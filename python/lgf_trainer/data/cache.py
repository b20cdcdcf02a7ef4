"""Cache between extraction and training: one verified file for each window of a video.

    FOLDER/settings.json                 what all its windows have in common: models, sizes, rates, LGF options
    FOLDER/windows/KEY.safetensors       the tensors of a window, and a JSON text about it
    FOLDER/windows.index                 the KEYs, where there are many (index.py)

A file appears under its name only when it is whole, and carries a hash of its content, which every reading checks: a
killed or failing writer leaves nothing that could be taken for a window. Several processes may write to one folder. What a
killed one leaves under a hidden name is removed by the next that opens the cache to write, once it is an hour old.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..runtime.errors import TrainerError, explained
from ..runtime.files import remove_leftovers, write_atomically
from ..runtime.settings import must_be_made_with
from .index import listed, read_index, write_index

INDEX = "windows.index"


class Window(NamedTuple):
    """The tensors of one window of a video, and where it comes from."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def must_hold(shapes: Mapping[str, Any], name: str, folder: str | PathLike, reader: str, way_out: str) -> None:
    """Refuse windows without a tensor.

    Args:
        shapes: of the tensors that the windows have, by name.
        name: of the tensor.
        folder: of the cache.
        reader: what reads it, such as "this recipe's alignment".
        way_out: what to do.
    """
    if name not in shapes:
        raise TrainerError(
            f"the windows of {folder} have no {name}, which {reader} reads; they have {', '.join(sorted(shapes))}. {way_out}"
        )


class WindowCache:
    """A folder of windows that were made with the same settings.

    Args:
        folder: where it is, or is to be.
        settings: what JSON can hold. Made with them if there is no cache there yet; one that is there must have been
            made with the same. None: whatever the settings are, but the cache must be there.
        transforms: names of transforms. Windows that were made of a changed video are left out of `keys`, but for these.

    Raises:
        TrainerError: there is no cache, or it was made with other settings (the first that differs is named).
    """

    def __init__(
        self, folder: str | PathLike, settings: dict[str, Any] | None = None, *, transforms: Collection[str] = ()
    ):
        self.folder, self.transforms = Path(folder), transforms
        path = self.folder / "settings.json"
        if not path.exists():
            if settings is None:
                raise TrainerError(f"{self.folder} holds no cache (no settings.json). Make one with lgf extract")
            write_atomically(path, json.dumps(settings, indent=1, sort_keys=True).encode())
        with (
            explained(f"{path} cannot be read", OSError),
            explained(f"{path} is damaged", ValueError, TypeError, way_out=f"Remove {self.folder} and extract again"),
        ):
            self.settings = dict(json.loads(path.read_text()))
        if settings is not None:
            wanted = json.loads(json.dumps(settings))
            if wanted != self.settings:  # a folder of thousands is not listed otherwise
                way_out = "Use another folder, or the settings it was made with"
                if not listed(self.folder / "windows"):
                    way_out = f"It has no windows: remove {self.folder}, unless another run is about to fill it"
                must_be_made_with(wanted, self.folder, self.settings, way_out)
            remove_leftovers(self.folder)
            remove_leftovers(self.folder / "windows")

    def keys(self) -> list[str]:
        """Return the windows that are there, in an order that does not depend on when they were written."""
        known = read_index(self.folder / "windows", self.folder / INDEX)
        keys = listed(self.folder / "windows") if known is None else known
        return [key for key in keys if transform_of(key) in (None, *self.transforms)]

    def index(self) -> None:
        """Write down which windows are there, for `keys`, where there are many. To be called after the last `write`."""
        write_index(self.folder / "windows", self.folder / INDEX)

    def filled(self) -> list[str]:
        """Return the windows that are there, as `keys`; refuse a cache without any."""
        if not (keys := self.keys()):
            raise TrainerError(f"{self.folder} has no windows yet. Fill it with lgf extract")
        return keys

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def path(self, key: str) -> Path:
        return self.folder / "windows" / f"{key}.safetensors"

    def write(self, key: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        text = json.dumps(about)
        # One entry: safetensors writes several in an order that changes from run to run, and files would differ.
        metadata = {"window": f"{_hash(tensors, text)} {text}"}
        write_atomically(self.path(key), save(tensors, metadata))

    def read(self, key: str) -> Window:
        """Return the window, verified.

        Raises:
            TrainerError: there is no such window, or it is not what was written.
        """
        path = self.path(key)
        way_out = "Remove it and run lgf extract again"
        with (
            explained(f"{path} cannot be read", OSError, SafetensorError, way_out=way_out),
            safe_open(path, "pt") as file,
        ):
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
        digest, _, text = metadata.get("window", "").partition(" ")
        if digest != _hash(tensors, text):
            raise TrainerError(f"{path} is damaged: its content is not what was written. Remove it, extract again")
        return Window(tensors, json.loads(text))


def changed_by(key: str, transform: str) -> str:
    """Return the key of a window whose video was changed by a transform, from that of the window as it is."""
    return f"{key}+{transform}"


def transform_of(key: str) -> str | None:
    """Return the transform of a key, or None."""
    return key.partition("+")[2] or None


def _hash(tensors: dict[str, Tensor], about: str) -> str:
    """Return the SHA-256 of names, types, shapes and contents, and of what is said about them."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
