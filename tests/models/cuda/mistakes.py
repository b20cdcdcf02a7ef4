"""Kernels with one mistake each, which the tests of a family must notice."""

import pytest

from . import build
from .launch import launched_on

#: A sanitizer ends the whole process when a broken kernel reads outside its memory.
broken_on_purpose = pytest.mark.skipif(build.SANITIZED, reason="a sanitizer would end the tests")


def mistakes(family: str, of_each_kind: dict[str, tuple], more: dict[str, tuple]):
    """Parametrize a test by mistakes: name -> file of the family, right code, wrong code.

    Kernels are compiled for each, so that continuous integration does without `more`.
    """
    rows = [
        pytest.param((f"{family}/{file}", right, wrong), id=name, marks=marks)
        for mistakes, marks in ((of_each_kind, ()), (more, pytest.mark.slow))
        for name, (file, right, wrong) in mistakes.items()
    ]
    return pytest.mark.parametrize("mistake", rows)


def broken(mistake, objects, tmp_path, monkeypatch):
    """Launch on a model with a mistake from now on. Return the model's own functions."""
    module, functions = build.module(tmp_path, objects, build.broken(tmp_path, *mistake))
    launched_on(module, monkeypatch)
    return functions


def must_be_noticed(run) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        run()
