"""The compiled Triton kernels on the model, against the oracle; and bugs that the model must notice."""

import math

import pytest
from support.numerics import json_lines

triton = pytest.importorskip("triton")

#: Relative errors of a value and of a gradient, which is rounded once and in half precision made of rounded coefficients.
TOLERANCES = {"float64": (1e-12, 1e-12), "float32": (1e-6, 5e-6), "bfloat16": (1e-6, 4e-3), "float16": (1e-6, 5e-4)}


@pytest.fixture(scope="module")
def results():
    """Of every case the errors or what the kernel did that it must not."""
    rows = json_lines("-m", "models.ptx.cases")
    return {row.pop("case"): row for row in rows}


def test_operators_against_the_oracle(results):
    operators = {name: row for name, row in results.items() if name.startswith(("lgf_", "local_", "token_"))}
    assert len(operators) == 15
    for name, row in operators.items():
        assert "fault" not in row, (name, row)
        tolerances = TOLERANCES[name.split()[1]]
        assert all(error <= most for error, most in zip(row["result"], tolerances, strict=False)), (name, row)


def test_bugs_are_noticed(results):
    for name, fault in {
        "past the end": "no part of any argument",
        "between the elements": "no part of any argument",
        "not aligned": "not aligned",
        "no barriers": "race",
        "waits too little": "where a copy is under way",
    }.items():
        assert fault in results[name]["fault"], name
    assert math.isnan(results["masked without other"]["result"])


def test_products_that_must_be_rounded(results):
    """Fused with a difference, equal features have one; in a sum of squares, threads of a token come to several."""
    assert results["nothing fused"]["result"] == 0
    assert results["differences fused"]["result"] > 1e-6
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):  # older ones let one thread of them write
        assert "two threads write" in results["norms fused"]["fault"]
