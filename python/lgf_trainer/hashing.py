"""What a file is, whatever it is called and wherever it lies."""

import functools
import hashlib
from pathlib import Path


@functools.lru_cache(maxsize=1024)
def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, read once in a process."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
