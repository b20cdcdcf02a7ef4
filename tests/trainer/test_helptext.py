"""--help shows what a field's docstring says as one paragraph, wherever the source breaks its lines."""

from dataclasses import dataclass, field
from typing import Annotated, get_origin

import pytest
from support.programs import flowing

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

import tyro
from lgf_cli import main as lgf
from lgf_trainer.commands import ExtractOptions, SampleOptions, with_help
from lgf_trainer.runtime import recipe


@dataclass(frozen=True)
class Inner:
    """A group."""

    rank: int = 4
    """Of the inner
    (in a group)."""


@dataclass(frozen=True)
class Options:
    """Some options."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Of the
    names."""
    plain: int = 3
    inner: Inner = field(default_factory=Inner)


pytestmark = pytest.mark.usefixtures("terminal")


def help_of(capsys, call):
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 0
    return flowing(capsys.readouterr().out)


def test_docstrings_become_paragraphs(capsys):
    for _ in range(2):  # the second time it is done already
        text = help_of(capsys, lambda: tyro.cli(with_help(Options), args=["--help"]))
        assert "Of the names." in text and "Of the inner (in a group)." in text and "--plain" in text
    parsed = tyro.cli(with_help(Options), args=["a", "b", "--inner.rank", "8"])
    assert parsed == Options(("a", "b"), inner=Inner(8))


@pytest.mark.parametrize(
    ("command", "options", "name"),
    [
        (["extract"], ExtractOptions, "output"),
        (["sample"], SampleOptions, "output"),
        (["train", "sam2videox"], recipe.Lgf, "fusion"),
    ],
)
def test_commands(capsys, command, options, name):
    help_of(capsys, lambda: lgf([*command, "--help"]))
    assert get_origin(options.__annotations__[name]) is Annotated


def test_recipes_are_read_as_before():
    with_help(recipe.Recipe)
    assert recipe.read_recipe("repa-dino").alignment.features == ("dino",)
