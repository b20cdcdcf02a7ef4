"""Dataclasses of settings from YAML: types and limits by pydantic, errors of one line."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from .errors import TrainerError, explained

#: pydantic's type of an error -> what the value must be.
_WORDS = {
    "greater_than_equal": "at least {ge:g}", "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}", "less_than": "below {lt:g}",
    "finite_number": "a finite number", "float_type": "a number",
    "int_type": "a whole number", "int_from_float": "a whole number",
    "bool_type": "true or false", "string_type": "text", "path_type": "a path", "tuple_type": "a list",
    "too_long": "a list of {max_length} at most", "too_short": "a list of {min_length} at least", "missing": "a longer list",
    "literal_error": "one of {expected}", "dataclass_type": "keys and values",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a class without options."""


class _Loader(yaml.SafeLoader):
    """Loader for YAML 1.1 in which 1e-4 is a number, not text, and a key may be there once, which PyYAML does not look at."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return node


def _number(loader: yaml.Loader, node: yaml.Node) -> float:
    value = float(loader.construct_scalar(node))
    return int(value) if value.is_integer() else value  # an int is valid for fields of either type


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
_Loader.add_implicit_resolver("!number", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("!number", _number)


def read_yaml(path: Any) -> dict[str, Any]:
    """Return the keys and values of a file."""
    with explained(f"{path} is no YAML", UnicodeDecodeError):
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the keys and values of a text; `source` is its name in messages."""
    with explained(f"{source} is no YAML", yaml.YAMLError):
        settings = yaml.load(text, _Loader) or {}
    if not isinstance(settings, dict):
        raise TrainerError(f"{source} must hold keys and values, such as `training: {{steps: 3000}}`")
    return settings


def from_settings(kind: type, settings: Any, source: str, *, base: Any = None, option: str = "") -> Any:
    """Return an instance of the dataclass `kind` from nested mappings; what they do not say is that of `base`, or the default.

    Messages begin with `source`, and call a key `option` and its name.

    Raises:
        TrainerError: an unknown key, which comes with the nearest known one, or a value of a wrong type or size.
    """
    prefix = f"{source}: " if source else ""
    if not isinstance(settings, dict):
        raise TrainerError(f"{prefix}must hold keys and values, got {settings!r}")
    _must_know(kind, settings, prefix, known=list(_keys(kind)))
    merged = merge(to_settings(base), settings) if base is not None else settings
    try:
        return TypeAdapter(kind).validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        raise TrainerError(prefix + _told(error, option)) from error


def to_settings(value: Any) -> Any:
    """Return a dataclass as what YAML and JSON can hold."""
    if is_group(value):
        return {entry.name: to_settings(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_settings(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value, of a dataclass and those in it."""
    flat = {}
    for entry in dataclasses.fields(group):
        value = getattr(group, entry.name)
        flat |= flatten(value, f"{prefix}{entry.name}.") if is_group(value) else {prefix + entry.name: value}
    return flat


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; where both have a key, that of `changes` counts."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def must_be_made_with(wanted: dict[str, Any], path: Path, found: dict[str, Any], way_out: str) -> None:
    """Refuse what was made with other settings than those of this run; the first that differs is named."""
    for name in sorted(wanted.keys() | found.keys()):
        if name in wanted and name in found and wanted[name] == found[name]:
            continue
        here, now = (repr(settings[name]) if name in settings else "nothing" for settings in (found, wanted))
        raise TrainerError(f"{path} was made with {name} = {here}, and this run has {now}. {way_out}")


def is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _told(error: ValidationError, option: str) -> str:
    first = error.errors()[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str) and part.isidentifier())
    if option:
        key = option + key.replace("_", "-")
    if first["type"] == "value_error":
        return f"{key} {first['ctx']['error']}".strip()
    context = first.get("ctx", {})
    if "expected" in context:
        context = {"expected": context["expected"].replace("'", "").replace(" or ", ", ")}
    words = _WORDS.get(first["type"])
    verb = "hold" if first["type"] == "dataclass_type" else "be"
    value = first["input"]
    if words is None:
        return f"{key}: {first['msg']}, got {value!r}"
    shown = value if isinstance(value, float) and not math.isfinite(value) else repr(value)
    return f"{key} must {verb} {words.format(**context)}, got {shown}"


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a dataclass, and of those in it."""
    for name, hint in get_type_hints(kind).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")


def _must_know(kind: type, settings: dict[str, Any], source: str, known: list[str], prefix: str = "") -> None:
    hints = get_type_hints(kind)
    for key, value in settings.items():
        if key not in hints:
            if not known:
                raise TrainerError(f"{source}there is no key {prefix}{key}, and none is known here")
            near = difflib.get_close_matches(f"{prefix}{key}", known, n=1, cutoff=0)[0]
            raise TrainerError(f"{source}there is no key {prefix}{key}. The nearest one is {near}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            _must_know(hints[key], value, source, known, f"{prefix}{key}.")
