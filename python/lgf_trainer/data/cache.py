"""Cache between extraction and training: one verified file for each window of a video.

    FOLDER/settings.json                 what all its windows have in common: models, sizes, rates, LGF options
    FOLDER/windows/KEY.safetensors       the tensors of a window, and a JSON text about it

A file appears under its name only when it is whole, and carries a hash of its content, which every reading checks: a
killed or failing writer leaves nothing that could be taken for a window. Several processes may write to one folder. What a
killed one leaves under a hidden name is removed by the next that opens the cache to write, once it is an hour old.
"""

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..runtime.errors import TrainerError
from ..runtime.files import remove_leftovers, write_atomically
from ..runtime.settings import must_be_made_with


class Window(NamedTuple):
    """The tensors of one window of a video, and where it comes from."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


class WindowCache:
    """A folder of windows that were made with the same settings.

    Args:
        folder: where it is, or is to be.
        settings: what JSON can hold. Made with them if there is no cache there yet; one that is there must have been
            made with the same. None: whatever the settings are, but the cache must be there.

    Raises:
        TrainerError: there is no cache, or it was made with other settings (the first that differs is named).
    """

    def __init__(self, folder: str | PathLike, settings: dict[str, Any] | None = None):
        self.folder = Path(folder)
        path = self.folder / "settings.json"
        if not path.exists():
            if settings is None:
                raise TrainerError(f"{self.folder} holds no cache (no settings.json). Make one with lgf extract")
            write_atomically(path, json.dumps(settings, indent=1, sort_keys=True).encode())
        try:
            self.settings = dict(json.loads(path.read_text()))
        except OSError as error:
            raise TrainerError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, TypeError) as error:
            raise TrainerError(f"{path} is damaged ({error}). Remove {self.folder} and extract again") from error
        if settings is not None:
            way_out = "Use another folder, or the settings it was made with"
            must_be_made_with(json.loads(json.dumps(settings)), self.folder, self.settings, way_out)
            remove_leftovers(self.folder)
            remove_leftovers(self.folder / "windows")

    def keys(self) -> list[str]:
        """Return the windows that are there, in an order that does not depend on when they were written."""
        return sorted(path.stem for path in (self.folder / "windows").glob("*.safetensors"))

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
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise TrainerError(f"{path} cannot be read ({error}). Remove it and run lgf extract again") from error
        digest, _, text = metadata.get("window", "").partition(" ")
        if digest != _hash(tensors, text):
            raise TrainerError(f"{path} is damaged: its content is not what was written. Remove it, extract again")
        return Window(tensors, json.loads(text))


def _hash(tensors: dict[str, Tensor], about: str) -> str:
    """Return the SHA-256 of names, types, shapes and contents, and of what is said about them."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
