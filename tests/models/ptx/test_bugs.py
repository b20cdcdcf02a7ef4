"""Bugs of kernels that the model must notice."""

import math

import pytest

from .results import results_of

pytest.importorskip("triton")


def test_bugs_are_noticed():
    results = results_of("bugs")
    for name, fault in {
        "past the end": "no part of any argument",
        "between the elements": "no part of any argument",
        "not aligned": "not aligned",
        "no barriers": "race",
        "waits too little": "where a copy is under way",
    }.items():
        assert fault in results[name]["fault"], name
    assert math.isnan(results["masked without other"]["result"])
