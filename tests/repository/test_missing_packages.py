"""Messages of commands and scripts where packages beyond the library's own are missing: one line, with the way out."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: (the package that is missing, the command), by the name that the command gives itself.
RUNS = {
    "lgf extract": ("tyro", "-m lgf_cli extract"),
    "lgf bench": ("tabulate", "-m lgf_cli bench"),
    "lgf bench report": ("matplotlib", "-m lgf_cli bench report"),
    "lgf bench step": ("diffusers", "-m lgf_cli bench step"),
    "python -m lgf_demo.playground": ("tyro", "-m lgf_demo.playground tiny"),
    "recipe_memory.py": ("diffusers", "benchmarks/tools/recipe_memory.py"),
    "kernel_report.py": ("triton", "benchmarks/tools/kernel_report.py"),
    "kernel_profile.py": ("tabulate", "benchmarks/tools/kernel_profile.py"),
    "tune.py": ("tqdm", "benchmarks/tools/tune.py"),
    "gpu_session.py": ("tabulate", "benchmarks/tools/gpu_session.py --dry-run"),
    "kernel_counts.py": ("triton", "benchmarks/tools/kernel_counts.py gram_flow 1 2 8 8 64 2 --json"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Name -> how the command ended: its code, what it printed, and its errors."""
    folder = tmp_path_factory.mktemp("runs")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "python", ROOT / "benchmarks")))
    command = [sys.executable, "-P", __file__, str(folder)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    codes = json.loads(done.stdout)
    return {name: (codes[name], *((folder / f"{name}.{kind}").read_text() for kind in ("out", "err"))) for name in RUNS}


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("lgf extract", '"lgf-kernels[train]"'),
        ("lgf bench", '"lgf-kernels[bench]"'),
        ("lgf bench report", '"lgf-kernels[bench,train]"'),
        ("lgf bench step", '"lgf-kernels[bench,train]"'),
        ("python -m lgf_demo.playground", '"lgf-kernels[train]"'),
        ("recipe_memory.py", '"lgf-kernels[bench,train]"'),
        ("kernel_report.py", "triton tqdm"),
        ("kernel_profile.py", "tabulate"),
        ("tune.py", "tqdm"),
    ],
)
def test_one_line_names_what_is_missing_and_how_to_get_it(ended, name, needed):
    code, _, error = ended[name]
    assert code == 1
    assert error == f"{name}: {RUNS[name][0]} is not installed. Get it with: pip install {needed}\n"


def test_a_gpu_session_begins_without_the_packages_of_the_bench(ended):
    """Each step names what it needs itself."""
    code, printed, error = ended["gpu_session.py"]
    assert code == 1 and "\ntargets " in printed and not error


def test_work_is_counted_without_triton(ended):
    code, printed, error = ended["kernel_counts.py"]
    assert code == 0 and "Triton" in printed, error


def run_without(missing: str, words: list[str]) -> int:
    """The command in a Python that cannot import a package, be it installed or not; the code that it ends with."""
    sys.modules[missing] = None
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def run_all(folder: Path) -> dict[str, int]:
    """Each in a process of its own, forked from one that has torch: it is never what is missing, and takes seconds to import."""
    import torch  # noqa: F401

    codes = {}
    for name, (missing, command) in RUNS.items():
        child = os.fork()
        if not child:
            for stream, kind in ((sys.stdout, "out"), (sys.stderr, "err")):
                os.dup2(os.open(folder / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT), stream.fileno())
            code = run_without(missing, command.split())
            sys.stdout.flush()
            os._exit(code)  # at once: to take torch down takes another second
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return codes


if __name__ == "__main__":
    print(json.dumps(run_all(Path(sys.argv[1]))))
