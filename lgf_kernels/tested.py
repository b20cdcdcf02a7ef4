"""Versions of other packages that the tests have been run with."""

import re

#: Oldest (constraints-oldest.txt) and newest (constraints.txt, or `make test-all LATEST=1` where
#: that was newer).
TESTED = {
    "python": ("3.11.7", "3.13.0"),
    "torch": ("2.11.0", "2.15.0"),
    "triton": ("3.6.0", "3.9.0"),
    "numpy": ("2.0.0", "2.5.5"),
    "diffusers": ("0.42.0", "0.42.1"),
    "transformers": ("5.2.0", "5.24.0"),
    "peft": ("0.18.0", "0.21.2"),
    "accelerate": ("1.10.0", "1.15.0"),
    "safetensors": ("0.8.0", "0.8.0"),
    "sam2": ("1.1.0", "1.1.0"),
    "torchvision": ("0.26.0", "0.29.2"),
    "av": ("18.1.0", "19.0.2"),
}


def untested_reason(package: str, version: str) -> str | None:
    """Return why a version counts as untested; None within the range, and for packages without a range."""
    if package not in TESTED or not (this := numbers(version)):
        return None
    oldest, newest = TESTED[package]
    if this < numbers(oldest):
        return f"older than any tested, {oldest} to {newest}"
    if this[:2] > numbers(newest)[:2]:  # a later patch of the newest counts as tested
        return f"newer than any tested, {oldest} to {newest}"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a release, such as (2, 14, 1) for 2.14.1+cu130; () for text without a version."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
