"""CONTRIBUTING's steps to a new operator, followed to the letter in a copy of the library."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.families import families

ROOT = Path(__file__).parents[2]
TRY = """
import doctest, importlib, torch, lgf_kernels as lgf
assert "frame_difference_loss" in lgf.__all__
examples = doctest.testmod(importlib.import_module("lgf_kernels.frame_difference.api"))
assert examples.attempted > 0 and examples.failed == 0
from lgf_kernels.core.registry import names_of_able
assert lgf.__file__.startswith({place!r})
assert names_of_able("frame_difference") == ["portable", "reference"]
f = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
results = []
for backend in ("portable", "reference", None):
    loss = lgf.frame_difference_loss(f, backend=backend)
    results.append((loss, *torch.autograd.grad(loss, f)))
for value, gradient in results[1:]:
    torch.testing.assert_close(value, results[0][0])
    torch.testing.assert_close(gradient, results[0][1])
expected = sum(((f[b, t + 1] - f[b, t]) ** 2).sum() for b in range(2) for t in range(2)) / (2 * 2 * 4 * 5 * 6)
torch.testing.assert_close(results[0][0], expected)
compiled = torch.compile(lgf.frame_difference_loss, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(f), expected)
torch.testing.assert_close(torch.vmap(lgf.frame_difference_loss)(f[None].detach()), expected[None].detach())
try:
    lgf.frame_difference_loss(f, backend="native")
except lgf.BackendUnavailableError as error:
    assert "frame_difference has no native kernel for cpu tensors" in str(error)
assert "frame_difference on cpu" in lgf.backends()[2].reason
print("right")
"""
MEASURE = """
import sys, lgf_bench, lgf_kernels as lgf
from lgf_bench import results
from lgf_cli import main
assert lgf.__file__.startswith({place!r}) and lgf_bench.__file__.startswith({place!r})
out = ["--out", "results"]
options = ["--providers", "eager", "portable", "native", "--rounds", "2", "--measure", "overhead", *out]
assert main(["bench", "frame_difference", "--shapes", "1,3,4,5,8", *options]) == 0
rows = {{row["provider"]: row for row in results.read(results.Path("results", results.LOSSES))}}
assert {{name: row["status"] for name, row in rows.items()}} == {{"eager": "right", "portable": "right", "native": "absent"}}
for row in (rows["eager"], rows["portable"]):
    assert row["case"] == "frame_difference-1x3x4x5x8" and row["tensors"] == {{"features": [1, 3, 4, 5, 8]}}
    assert row["gradient_error"] < 1e-5 and row["both"]["median_ms"] > 0 and row["bytes"]["forward"] == 480 * 4
try:
    main(["bench", "frame_difference", "--shapes", "1,1,4,5,8", *options])
except SystemExit as stopped:
    assert stopped.code == "lgf bench: --shapes 1,1,4,5,8: frame_difference takes B,T,H,W,C with T at least 2."
"""


def files_of_the_steps() -> dict[str, str]:
    """Return the files that CONTRIBUTING shows: the name of each stands before its block of code."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"`((?:lgf_kernels|benchmarks|tests)/[\w/]+\.py)`:\n\n```python\n(.*?)```", text, re.S))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a copy of the library, the bench, the command and the tests of all families, with the operator added."""
    place = tmp_path_factory.mktemp("copy")
    tests = (f"tests/{name}" for name in ("core", "support", "models", *families()))
    for folder in ("lgf_kernels", "benchmarks/lgf_bench", "benchmarks/tools", "python/lgf_cli", *tests):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, place / file)
    files = files_of_the_steps()
    assert len(files) == 8
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(exist_ok=True)
        added = path.read_text() if path.exists() else ""  # the public name is added to what is there
        path.write_text(added + content)
    (place / "tests" / "frame_difference" / "__init__.py").touch()
    return place


def python(place, *arguments) -> subprocess.CompletedProcess:
    path = os.pathsep.join(map(str, (place, place / "python", place / "benchmarks")))
    environment = {"PYTHONPATH": path, "PATH": os.defpath, "HOME": str(place)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place)


def test_a_made_up_operator_by_the_steps(place):
    done = python(place, "-c", TRY.format(place=str(place)))
    assert done.returncode == 0 and done.stdout == "right\n", done.stderr


def test_the_tests_of_all_families_run_for_it(place):
    names = ("autocast_changes", "second_derivative", "compiles_without", "vmap_is", "meta_tensors")
    files = ("tests/core/test_autograd.py", "tests/core/test_compile.py")
    chosen = f"frame_difference and ({' or '.join(names)})"
    done = python(place, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert re.search(r"^6 passed", done.stdout, re.M), done.stdout + done.stderr


def test_the_bench_finds_the_operator_and_measures_it(place):
    done = python(place, "-c", MEASURE.format(place=str(place)))
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr
