"""Bugs of kernels that the model must notice."""

import math

import pytest

from .results import TOLERANCES, results_of

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


@pytest.mark.parametrize("words", [["few"], pytest.param([], marks=pytest.mark.slow)], ids=str)
def test_bugs_on_hopper_are_noticed(words):
    from . import bugs

    expected = bugs.ON_HOPPER if words else bugs.ON_HOPPER | bugs.MORE_ON_HOPPER
    results = results_of("sm_90", "bugs", *words)
    assert results.keys() == expected.keys()
    for name, (_, _, fault) in expected.items():
        row = results[name]
        if fault is None and "result" in row:
            assert not all(error <= most for error, most in zip(row["result"], TOLERANCES["bfloat16"], strict=True)), (
                name
            )
        else:
            assert (fault or "") in row["fault"], (name, row)
