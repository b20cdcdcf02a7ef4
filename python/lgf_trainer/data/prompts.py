"""Requests of `lgf sample`: prompts, images and seeds, from the command line or from a list."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.errors import TrainerError
from .sources import of_whole_characters

COLUMNS = ("prompt", "image", "name", "seed")


class Request(NamedTuple):
    """One video to generate."""

    name: str  # of its files
    prompt: str
    image: Path | None
    seed: int


def read_list(path: Path, seed: int) -> list[Request]:
    """Return the requests of a .jsonl file (an object a line) or a .tsv file (the first line names the columns).

    Keys and columns are prompt, image (relative to the list's folder), name (default: the image's without suffix, or
    the number of the line) and seed (default: `seed`); only prompt must be there.

    Raises:
        TrainerError: what is wrong, and in which line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"{path} cannot be read ({error}). Give a .jsonl or .tsv list of prompts") from error
    requests = [_request(path, number, row, seed) for number, row in _rows(path, text)]
    if not requests:
        raise TrainerError(f"{path} has no prompts")
    lines: dict[str, int] = {}
    for number, request in enumerate(requests, 1):
        if lines.setdefault(request.name, number) != number:
            raise TrainerError(
                f"{path}: entries {lines[request.name]} and {number} would both be called {request.name}. Name them"
            )
    return requests


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, key -> value) of every entry."""
    lines = io.StringIO(text)  # unlike str.splitlines, this leaves a line separator inside a prompt alone
    if path.suffix == ".tsv":
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restkey="field")
        for row in reader:
            yield reader.line_num, row
    elif path.suffix == ".jsonl":
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise TrainerError(f"{path}, line {number}, is no JSON ({error})") from error
    else:
        raise TrainerError(f"{path}: a list of prompts is a .jsonl or a .tsv file")


def _request(path: Path, number: int, row: Any, seed: int) -> Request:
    where = f"{path}, line {number}"
    if not isinstance(row, dict):
        raise TrainerError(f'{where}: expected an object such as {{"prompt": "a dog runs", "image": "dog.png"}}')
    if unknown := [key for key in row if key not in COLUMNS]:
        raise TrainerError(f"{where}: unknown {unknown[0]}. There are {', '.join(COLUMNS)}")
    row = {key: value for key, value in row.items() if value not in (None, "")}
    if not isinstance(row.get("prompt"), str):
        raise TrainerError(f"{where} has no prompt")
    prompt = of_whole_characters(row["prompt"])
    image = path.parent / str(row["image"]) if "image" in row else None
    name = str(row.get("name", image.stem if image else f"{number:04d}"))
    if Path(name).name != name or "\0" in name:
        raise TrainerError(f"{where}: {name!r} cannot be the name of a file")
    try:
        return Request(name, prompt, image, int(str(row.get("seed", seed))))  # via text: int(1.5) would be 1
    except ValueError as error:
        raise TrainerError(f"{where}: seed must be a whole number, not {row['seed']!r}") from error
