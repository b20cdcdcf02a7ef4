"""Text for terminals: help of a dataclass of options, and tables."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated


@cache
def with_help(kind: type) -> type:
    """The dataclass, and those in it, with the docstrings of their fields where tyro shows them as they are: as one paragraph.

    Left to find them itself, tyro keeps the line breaks that they have in the source.
    """
    import docstring_parser
    import tyro

    for field in fields(kind):
        if is_dataclass(field.type):
            with_help(field.type)
    for entry in docstring_parser.parse_from_object(kind).params:
        text = " ".join(entry.description.split())
        hint = kind.__annotations__[entry.arg_name]
        kind.__annotations__[entry.arg_name] = Annotated[hint, tyro.conf.arg(help=text)]
    return kind


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Text with aligned columns, the first to the left and numbers to the right; the first row is the heading.

    Example:
        >>> print(format_table([["name", "x"], ["a", "1.00"]]))
        name     x
        ----------
        a     1.00
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
