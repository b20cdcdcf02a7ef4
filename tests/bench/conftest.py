"""Small cases, so that the benchmark's own tests take seconds."""

import importlib
import os
import subprocess

import pytest
from lgf_bench.families import CASES
from support.bench_cases import SMALL


@pytest.fixture
def git(monkeypatch):
    """Return a function that runs git in a folder, without the settings of the user: signatures, hooks, templates."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def run(place, *arguments) -> str:
        command = ["git", "-C", place, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture
def small_cases():
    importlib.import_module("tune")  # which takes its cases from the real ones when it is imported
    real = dict(CASES)
    replace(SMALL)
    yield
    replace(real)


def replace(others):
    """Replace the cases in place, since others have imported the table, and in their order, which is the report's."""
    CASES.clear()
    CASES.update(others)


@pytest.fixture
def ceiling():
    """Return the ceilings of a machine with round numbers: 1 GB/s, 1 GFLOP/s."""
    return {"device": "a machine", "threads": 1, "torch": "2", "copy": 1e9, "L2": 2e9, "gemm": {"float32": 1e9}}
