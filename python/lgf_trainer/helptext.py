"""What --help says about a dataclass of options."""

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated

import docstring_parser
import tyro


@cache
def with_help(kind: type) -> type:
    """The dataclass, and those in it, with the docstrings of their fields where tyro shows them as they are: as one paragraph.

    Left to find them itself, tyro keeps the line breaks that they have in the source.
    """
    for field in fields(kind):
        if is_dataclass(field.type):
            with_help(field.type)
    for entry in docstring_parser.parse_from_object(kind).params:
        text = " ".join(entry.description.split())
        hint = kind.__annotations__[entry.arg_name]
        kind.__annotations__[entry.arg_name] = Annotated[hint, tyro.conf.arg(help=text)]
    return kind
