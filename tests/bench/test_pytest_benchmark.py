"""`make bench`: the answer comes first there too, and a device that is not here is one line."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from bench_helpers import SMALL

from lgf_kernels.bench import results
from lgf_kernels.bench.providers import provider


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_wrong_answer_is_not_timed(monkeypatch, factor):
    timed, losses = [], importlib.import_module("test_losses")
    monkeypatch.setattr(losses, "provider", lambda name, case: lambda *inputs: factor * provider(name, case)(*inputs))
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda run, **_: timed.append(run()))
    try:
        losses.test_forward_and_backward(benchmark, "small-lgf", SMALL["small-lgf"], "portable")
    except AssertionError as error:
        assert "errors of output and gradient" in str(error)
    assert len(timed) == (factor == 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_clear_line():
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", "--device", "cuda"]
    done = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True)
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 4 and line.startswith("ERROR: --device cuda: torch sees no CUDA device here")
