"""Versions of other packages: promised, tested, and reported by `lgf doctor`."""

import re
import tomllib
from pathlib import Path

import pytest

from lgf_kernels import doctor
from lgf_kernels.tested import TESTED, numbers, untested_reason

ROOT = Path(__file__).parents[2]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    found = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    return {package.replace("_", "-"): version for package, version in found.items()}


def promised():
    """Package -> the lowest version that pyproject.toml takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [project["build-system"]["requires"], project["project"]["dependencies"]]
    lists += project["project"]["optional-dependencies"].values()
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", entry).groups() for entries in lists for entry in entries)


def same(one, other):
    """Versions, be it that one is written without its zeros."""
    return re.sub(r"(\.0)+$", "", one) == re.sub(r"(\.0)+$", "", other)


def test_every_promise_is_run():
    oldest = pins("constraints-oldest.txt")
    for package, version in promised().items():
        assert same(oldest[package], version), f"{package}: {version} is promised, {oldest[package]} is tested"


def test_what_ci_runs_with_is_pinned_whole():
    pinned = pins("constraints.txt")
    assert pinned.keys() >= promised().keys() | {"pip", "setuptools", "triton", "torchvision", "wheel"}


def test_the_tested_range_is_that_of_the_constraints():
    oldest, pinned = pins("constraints-oldest.txt"), pins("constraints.txt")
    for package, (low, high) in TESTED.items():
        if package != "python":
            assert same(low, oldest[package]) and numbers(low) <= numbers(pinned[package]) <= numbers(high), package


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("torch", "2.10.1", "older than any tested"),
        ("torch", TESTED["torch"][0], None),
        ("torch", TESTED["torch"][1] + "+cu130", None),
        ("torch", "2.100.0.dev20270101", "newer than any tested"),
        ("torch", "not installed", None),
        ("something", "1.0", None),
    ],
)
def test_versions_outside_the_range_are_said(package, version, expected):
    said = untested_reason(package, version)
    assert (said is None) if expected is None else said.startswith(expected)


def test_a_patch_of_the_newest_is_taken_for_it():
    low, high = TESTED["torch"]
    major, minor, patch = numbers(high)
    assert untested_reason("torch", f"{major}.{minor}.{patch + 1}") is None
    assert untested_reason("torch", f"{major}.{minor + 1}.0") == f"newer than any tested, {low} to {high}"


def test_doctor_says_so(monkeypatch):
    monkeypatch.setitem(TESTED, "torch", ("1.0.0", "1.1.0"))
    report = doctor.examine()
    assert report["untested"] == {"torch": "newer than any tested, 1.0.0 to 1.1.0"}
    (line,) = (line for line in doctor.as_text(report).splitlines() if line.startswith("  torch  "))
    assert line.endswith("(newer than any tested, 1.0.0 to 1.1.0)")
