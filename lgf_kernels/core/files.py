"""Files that are there under their names as a whole or not at all, for the library and the packages above it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

#: Names of files that are being written, or were when their process was killed.
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write to, which gets its name when all of it is on the disk. Until then an older one stays."""
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")  # no other process, on any node, has this name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace it."""
    with whole_file(path) as file:
        file.write(content)
