"""`make bench`: the answer comes first there too, and a device or plugin that is not here is one line."""

import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lgf_bench import results
from lgf_bench.providers import provider
from support.bench_cases import SMALL


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_wrong_answer_is_not_timed(monkeypatch, factor):
    timed, losses = [], importlib.import_module("test_losses")
    monkeypatch.setattr(losses, "provider", lambda name, case: lambda **inputs: factor * provider(name, case)(**inputs))
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda run, **_: timed.append(run()))
    try:
        losses.test_forward_and_backward(benchmark, "small-lgf", SMALL["small-lgf"], "portable")
    except AssertionError as error:
        assert "errors of output and gradients" in str(error)
    assert len(timed) == (factor == 1.0)


@pytest.fixture(scope="module")
def errors():
    """Return how `pytest benchmarks` ends with each of some options: in one process, which takes longer to start than all."""
    options = {"device": ["--device", "cuda"], "plugin": ["-p", "no:benchmark"]}
    code = f"""if True:
        import pytest
        for name, options in {options}.items():
            code = pytest.main(["benchmarks", "-p", "no:cacheprovider", *options])
            print("\\nENDED", name, int(code), flush=True)
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=results.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return {
        name: (int(code), said)
        for said, name, code in re.findall(r"(.*?)^ENDED (\w+) (\d+)$", done.stdout, re.DOTALL | re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("device", "--device cuda: torch sees no CUDA device here; `lgf doctor`"),
        ("plugin", "pytest-benchmark is not installed. Get it with: pip install"),
    ],
)
def test_what_is_not_here_is_one_clear_line(errors, name, says):
    if name == "device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, said = errors[name]
    (line,) = (line for line in said.splitlines() if line.startswith("ERROR"))  # torch may say a word on drivers
    assert code == 4 and line.startswith(f"ERROR: {says}") and "Traceback" not in said
