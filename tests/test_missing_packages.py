"""What the commands and scripts say where packages beyond those of the library itself are missing: one line, with the way out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(folder, missing, *command):
    """The command in a Python that cannot import a package, be it installed or not."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "python")))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)


@pytest.mark.parametrize(
    ("command", "name", "missing", "needed"),
    [
        ("-m lgf_cli extract", "lgf extract", "tyro", '"lgf-kernels[train]"'),
        ("-m lgf_trainer.playground tiny", "python -m lgf_trainer.playground", "tyro", '"lgf-kernels[train]"'),
        ("-m lgf_trainer.memory", "python -m lgf_trainer.memory", "diffusers", '"lgf-kernels[train]"'),
        ("benchmarks/kernel_report.py", "kernel_report.py", "triton", "triton tqdm"),
    ],
)
def test_one_line_names_what_is_missing_and_how_to_get_it(tmp_path, command, name, missing, needed):
    done = run(tmp_path, missing, *command.split())
    assert done.returncode == 1
    assert done.stderr == f"{name}: {missing} is not installed. Get it with: pip install {needed}\n"


def test_work_is_counted_without_triton(tmp_path):
    done = run(tmp_path, "triton", "benchmarks/kernel_counts.py", "--shape", "1", "2", "8", "8", "64", "--json")
    assert done.returncode == 0 and "Triton" in done.stdout, done.stderr
