"""Inputs, tolerances and backends that several tests share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from lgf_kernels.core.registry import names_of_able


def backends_of(operator, device_type="cpu"):
    """The backends that run an operator on this machine, the oracle left out."""
    return [name for name in names_of_able(operator, device_type) if name != "reference"]


def flowing(text):
    """A text without its boxes and line breaks: where lines end depends on the width of a terminal."""
    return " ".join(re.sub("[─│╭╮╯╰]", " ", text).split())


def features(*shape, dtype=torch.float32, requires_grad=False):
    """Random features, made in float64 so that the numbers do not depend on the type."""
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


def value_and_gradient(loss, student, *arguments, upstream=None, **options):
    """The loss, and its gradient with respect to a fresh leaf with the student's values and strides."""
    leaf = student.detach().requires_grad_()
    value = loss(leaf, *arguments, **options)
    value.backward(torch.ones_like(value) if upstream is None else upstream.to(value.dtype))
    return value.detach(), leaf.grad


def rounding(dtype, backend):
    """How far off, relative to the truth, a gradient rounded to half precision may be."""
    if dtype == torch.bfloat16:
        # Triton's interpreter rounds bfloat16 towards 0, GPUs to nearest.
        return 8e-3 if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1" else 4e-3
    return 5e-4


def double(value):
    """The same numbers in float64, through lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.double()
    return [double(v) for v in value] if isinstance(value, list) else value


def relative_error(value, truth):
    """Norm of the error over the norm of the truth, in float64."""
    value, truth = value.double(), truth.double()
    return (torch.linalg.vector_norm(value - truth) / torch.linalg.vector_norm(truth)).item()


def assert_close(value, truth, tolerance, absolute=0.0):
    """The error's norm is at most `tolerance` of the truth's, or every element's at most `absolute`."""
    assert value.shape == truth.shape
    if (value.double() - truth).abs().max() <= absolute:
        return
    error = relative_error(value, truth)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def json_lines(*arguments):
    """What a Python program prints, in a process of its own: in that of the tests Triton kernels are interpreted."""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(root / "build" / "triton")  # its default is in the home, which may be closed
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert process.returncode == 0, process.stderr
    assert "fusion" not in process.stderr, "left to Triton, whose choice differs between versions"
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert rows
    return rows
