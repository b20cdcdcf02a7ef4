"""Mistakes in the PTX of CUDA C++ kernels, which the tests of a family must notice."""

import re
from collections.abc import Callable

import pytest


class Mistake:
    """A change of the PTX of all kernels: every match of a regular expression is replaced."""

    def __init__(self, right: str, wrong: str | Callable[[re.Match], str]):
        self.right, self.wrong, self.changes = right, wrong, 0

    def __call__(self, ptx: str) -> str:
        changed, count = re.subn(self.right, self.wrong, ptx)
        self.changes += count
        return changed


def mistakes(of_each_kind: dict[str, tuple], more: dict[str, tuple]):
    """Parametrize a test by mistakes: name -> architecture, a regular expression for the right PTX, the wrong PTX, and what the
    error says, or None.

    Continuous integration does without `more`.
    """
    rows = [
        pytest.param(mistake, id=f"{name}, {mistake[0]}", marks=marks)
        for named, marks in ((of_each_kind, ()), (more, pytest.mark.slow))
        for name, mistake in named.items()
    ]
    return pytest.mark.parametrize("mistake", rows)


def must_be_noticed(nvcc_model, mistake: tuple, run, **device) -> None:
    """Run with a mistake. The model must say what is wrong, or the results must be."""
    architecture, right, wrong, error = mistake
    edit = Mistake(right, wrong)
    nvcc_model(architecture, edit, **device)
    with pytest.raises((AssertionError, RuntimeError), match=error):
        run()
    assert edit.changes, f"no kernel has {right!r}"
