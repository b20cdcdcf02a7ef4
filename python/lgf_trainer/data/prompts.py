"""Requests of `lgf sample`: prompts, images and seeds, from the command line or from a list."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.errors import TrainerError
from .sources import json_lines, of_whole_characters, read_text

COLUMNS = ("prompt", "image", "name", "seed")
EXAMPLE = '{"prompt": "a dog runs", "image": "dog.png"}'


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
    """
    requests = [_request(path, number, row, seed) for number, row in _rows(path)]
    if not requests:
        raise TrainerError(f"{path} has no prompts")
    lines: dict[str, int] = {}
    for number, request in enumerate(requests, 1):
        if lines.setdefault(request.name, number) != number:
            raise TrainerError(
                f"{path}: entries {lines[request.name]} and {number} would both be called {request.name}. Name them"
            )
    return requests


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the line, key -> value) of every entry."""
    if path.suffix == ".tsv":
        lines = io.StringIO(read_text(path))
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restkey="field")
        for row in reader:
            yield reader.line_num, row
    elif path.suffix == ".jsonl":
        yield from json_lines(path, EXAMPLE)
    else:
        raise TrainerError(f"{path}: a list of prompts is a .jsonl or a .tsv file")


def _request(path: Path, number: int, row: dict[str, Any], seed: int) -> Request:
    where = f"{path}, line {number}"
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
