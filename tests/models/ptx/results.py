"""Results of `models.ptx.cases`, and what must hold for those of a family."""

from support.programs import json_lines

#: Relative errors of a value and of a gradient, which is rounded once and in half precision made of rounded coefficients.
TOLERANCES = {"float64": (1e-12, 1e-12), "float32": (1e-6, 5e-6), "bfloat16": (1e-6, 4e-3), "float16": (1e-6, 5e-4)}


def results_of(*names: str) -> dict[str, dict]:
    """Return for every case the errors, or the fault of the kernel."""
    rows = json_lines("-m", "models.ptx.cases", *names)
    return {row.pop("case"): row for row in rows}


def check(results: dict[str, dict], cases: list) -> None:
    """Assert that all cases have run and are as exact as their type allows."""
    names = [str(case) for case in cases]
    assert names and set(names) <= results.keys()
    for name, case in zip(names, cases, strict=True):
        row = results[name]
        assert "fault" not in row, (name, row)
        tolerances = TOLERANCES[case.dtype]
        assert all(error <= most for error, most in zip(row["result"], tolerances, strict=False)), (name, row)
