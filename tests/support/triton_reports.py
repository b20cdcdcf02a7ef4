"""What Triton kernels compile to ahead of time, for GPUs that this machine need not have."""

import json

from support.programs import json_lines


def report(*arguments) -> list[dict]:
    return json_lines("benchmarks/tools/kernel_report.py", "--json", *arguments)


def describe(row) -> str:
    return json.dumps(row, indent=1)


def old_triton() -> bool:
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def check(row, spills=False) -> None:
    """Assert that a kernel compiles, fits an SM, spills no registers (unless `spills`) and uses the tensor cores."""
    assert "error" not in row, describe(row)
    # The compiler of Triton 3.6 parks a few registers outside the loops; newer ones need not.
    assert spills or row["spilled"] <= (128 if old_triton() else 0), describe(row)
    assert row["programs"] >= 1, f"more shared memory than there is: {describe(row)}"
    if "norms" not in row["kernel"] and "project" not in row["kernel"]:
        assert row["tensor_core"] > 0, describe(row)


def check_all(rows, arch, spilling: tuple[str, ...] = ()) -> None:
    """Check the rows of one architecture, except for those that Triton 3.6 cannot compile for Blackwell.

    `spilling`: beginnings of the names of kernels that may spill registers.
    """
    for row in rows:
        if not (old_triton() and arch == 100 and "error" in row):
            check(row, row["kernel"].startswith(spilling))


def check_resolutions(family: str, kernels: int) -> None:
    """Assert that a new resolution compiles nothing, by Triton's own binding of arguments, which the report goes round."""
    first, *others = json_lines("-m", "support.triton_binding", family)
    assert len(first) == kernels
    for later in others:
        assert later == first
