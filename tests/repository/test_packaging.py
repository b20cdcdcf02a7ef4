"""The sdist and the wheel, with a C++ compiler and without one."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

#: nvcc and an optimizing compiler take a minute, and these tests have nothing to learn from them.
QUICK = {
    "LGF_CUDA": "off",
    "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DLGF_OLD_GLIBC=ON",
}


#: With the tools that are here: `built` has shown that those of an isolated environment, which pip first has to make, do.
PIP_INSTALL = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation")


def run(*command, **environment):
    environment = os.environ | QUICK | environment
    result = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel made from it, each in an isolated environment, from the tracked files alone."""
    place = tmp_path_factory.mktemp("build")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("this is no git checkout: there is no telling what belongs to the project")
    for name in filter(lambda n: (ROOT / n).is_file(), tracked.stdout.splitlines()):
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "source" / name)
    run(sys.executable, "-m", "build", "--outdir", place / "dist", place / "source")
    return next((place / "dist").glob("*.tar.gz")), next((place / "dist").glob("*.whl"))


@pytest.fixture
def tree(built, tmp_path):
    """The sdist unpacked, with a CPU module that does nothing: for what is built, and not what it does."""
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    for source in (tree / "csrc" / "cpu").rglob("*.cpp"):
        source.write_text("")
    return tree


def installed(package, place, **environment):
    """Install into a folder of its own, and ask the doctor there."""
    pip = run(*PIP_INSTALL, "--verbose", "--target", place, package, **environment)

    def python(*arguments):
        # -S leaves the .pth files alone, and with them the editable install, which would lend its modules.
        paths = os.pathsep.join([str(place), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        return run(
            sys.executable, "-S", *arguments, PYTHONPATH=paths
        ).stdout  # torch may have a word on drivers beside it

    loss = (
        "import torch, lgf_kernels as l; f = torch.randn(1, 2, 3, 4, 5); print(l.__file__, l.lgf_kl_loss(f, f).item())"
    )
    where, value = python("-c", loss).rsplit(maxsplit=1)
    assert where.startswith(str(place)), "the installed package is not what was imported"
    assert abs(float(value)) < 1e-5
    return json.loads(python("-m", "lgf_cli", "doctor", "--json")), pip.stdout + pip.stderr


def test_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", "CMakeLists.txt", "python/lgf_cli/main.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert not [name for name in names if name.startswith("tests/")], "a few of them, without what they need to run"


def test_wheel_holds_the_packages_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
        library = {n: archive.read(n).decode() for n in names if n.startswith("lgf_kernels/") and n.endswith(".py")}
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "lgf_kernels",
        "lgf_bench",
        "lgf_cli",
        "lgf_demo",
        "lgf_trainer",
    }
    for name in (
        "lgf_kernels/gram_flow/operators.py",
        "lgf_bench/families/token_relation.py",
        "lgf_demo/report.html",
        "lgf_demo/which-loss.md",
        "lgf_trainer/__init__.py",
        "lgf_trainer/recipes/sam2videox.yaml",
    ):
        assert name in names
    assert library and not [n for n, text in library.items() if re.search("lgf_(trainer|demo|bench)", text)]
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert any(n.endswith("entry_points.txt") for n in names)
    assert any(n.startswith("lgf_kernels/_cpu") for n in names) == bool(COMPILER)
    assert "Requires-Dist: torch>=2.11" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(required) == 1, "the core depends on torch alone"


def test_wheel_installs(built, tmp_path):
    report, _ = installed(built[1], tmp_path / "site")
    assert report["native modules"]["_cpu"]["available"] == ("yes" if COMPILER else "no")


@pytest.fixture(scope="module")
def repaired(built, tmp_path_factory):
    """The wheel as `make wheel` leaves it: with the oldest manylinux tag that its symbols allow."""
    if COMPILER is None or platform.libc_ver()[0] != "glibc":
        pytest.skip("no CPU module is built here, or not for glibc")
    place = tmp_path_factory.mktemp("repaired")
    auditwheel = (sys.executable, "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1", "--wheel-dir", place)
    run(*auditwheel, built[1], PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return next(place.glob("*.whl"))


def test_wheel_is_for_older_machines(repaired):
    oldest = min(int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", repaired.name))
    assert oldest <= 28, repaired.name
    with zipfile.ZipFile(repaired) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name], "a second OpenMP would be a second pool"


def test_wheel_runs_beside_a_torch_that_was_not_there(repaired, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", repaired, PYTHONPATH="")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code).stdout.strip())
    (site / "torch.pth").write_text(sysconfig.get_path("purelib"))
    report = json.loads(run(tmp_path / "venv" / "bin" / "lgf", "doctor", "--json", PYTHONPATH="").stdout)
    assert report["native modules"]["_cpu"]["available"] == "yes"
    smoke = run(python, "-P", ROOT / "tests" / "support" / "wheel_smoke.py", PYTHONPATH="").stdout
    assert smoke.startswith(f"right: {site}")


def test_sdist_installs_without_a_compiler(built, tmp_path):
    report, log = installed(built[0], tmp_path / "site", CXX="/nonexistent/c++", CC="/nonexistent/cc")
    assert report["native modules"]["_cpu"]["available"] == "no"
    assert "was not built" in report["native modules"]["_cpu"]["reason"]
    lines = [line for line in log.splitlines() if "native module lgf_kernels._cpu not built" in line]
    assert len(lines) == 1


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_moved_tree_builds_in_place_with_the_tools_of_its_python(tree, tmp_path):
    """As in `.venv/bin/python setup.py build_ext`: no CMake on PATH; the build folder is that of another place."""
    folders = [tmp_path / "bin" / str(number) for number in range(len(os.get_exec_path()))]
    for folder, original in zip(folders, os.get_exec_path(), strict=True):
        folder.mkdir(parents=True)
        for program in os.scandir(original) if os.path.isdir(original) else ():
            if not program.name.startswith(("cmake", "ninja")):
                (folder / program.name).symlink_to(program.path)
    for place in (tree, tmp_path / "moved"):
        if place is not tree:
            tree.rename(place)
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        path = os.pathsep.join(map(str, folders))
        environment = os.environ | QUICK | {"PATH": path, "LGF_NATIVE": "on"}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list((place / "lgf_kernels").glob("_cpu*.so"))) == 1


@pytest.fixture
def failing_nvcc(tmp_path):
    fake = tmp_path / "nvcc"
    fake.write_text("#!/bin/sh\necho 'error: unsupported everything' >&2\nexit 1\n")
    fake.chmod(0o755)
    return {"LGF_CUDA": "auto", "CUDACXX": str(fake)}


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_cuda_compiler_that_fails_takes_nothing_else_down(tree, tmp_path, failing_nvcc):
    """`tree` has nothing in it that takes long to compile."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib"]
    environment = os.environ | QUICK | failing_nvcc
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name.partition(".")[0] for path in (tmp_path / "lib").rglob("*.so")] == ["_cpu"]
    assert done.stderr.count("native module lgf_kernels._cuda not built") == 1


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_sdist_installs_with_a_cuda_compiler_that_fails(built, tmp_path, failing_nvcc):
    report, log = installed(built[0], tmp_path / "site", **failing_nvcc)
    assert report["native modules"]["_cpu"]["available"] == "yes"
    assert report["native modules"]["_cuda"]["available"] == "no"
    assert len([line for line in log.splitlines() if "native module lgf_kernels._cuda not built" in line]) == 1


def test_a_module_of_an_earlier_build_is_not_packed(tmp_path):
    stale = tmp_path / "lgf_kernels" / "_cpu.cpython-39-x86_64-linux-gnu.so"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    temporary = tmp_path / "temporary"
    command = ["setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", temporary]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | QUICK | {"CXX": "/nonexistent/c++"},
    )  # fmt: skip
    assert done.returncode == 0 and "_cpu not built" in done.stderr, done.stdout + done.stderr
    assert not stale.exists()


def test_a_compiler_can_be_insisted_on(built, tmp_path):
    result = subprocess.run(
        [*PIP_INSTALL, "--target", tmp_path, built[0]],
        env=os.environ | QUICK | {"CXX": "/nonexistent/c++", "LGF_NATIVE": "on"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode != 0 and "lgf_kernels._cpu not built" in result.stdout + result.stderr
