"""Builds the CUDA module's sources, bindings included, for the model of a GPU: a Python module that runs them on the CPU."""

import ctypes
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The compiler's words, for CXX may hold several ("ccache g++"); none where there is no compiler.
COMPILER = shlex.split(os.environ.get("CXX", "")) or list(filter(None, map(shutil.which, ("g++", "c++"))))[:1]
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
#: Registers start with a pattern as well as shared memory: what is read before it is written must not pass. From GCC 12 on.
PATTERN = "-ftrivial-auto-var-init=pattern"
NAMES = (
    '-DLGF_BUILD_VERSION="0"',
    '-DLGF_BUILD_COMPILER=""',
    '-DLGF_BUILD_FLAGS=""',
    '-DLGF_BUILD_ARCHITECTURES="model"',
)
#: `make sanitize` loads the sanitizer before Python; the model is then built for it, but not by a compiler under it.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
SANITIZE = ("-fsanitize=address", "-fno-omit-frame-pointer") if SANITIZED else ()


def run(*command) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    words = [str(word) for word in command]
    process = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr


@cache
def pattern() -> list[str]:
    """The option, where the compiler has it."""
    known = subprocess.run([*COMPILER, PATTERN, "-fsyntax-only", "-x", "c++", os.devnull], capture_output=True)
    return [] if known.returncode else [PATTERN]


def compiled(source: Path, output: Path, csrc: Path, *options) -> Path:
    includes = [f"-I{csrc}", f"-I{csrc / 'cuda'}", f"-I{ROOT / 'tests' / 'cuda_model'}"]
    run(*COMPILER, *FLAGS, *pattern(), *SANITIZE, *includes, *options, "-x", "c++", "-c", source, "-o", output)
    return output


def objects(place: Path) -> dict[str, Path]:
    """The bindings, the model's scheduler and the kernels, by the names of their sources."""
    import pybind11

    headers = [
        word for path in (pybind11.get_include(), sysconfig.get_paths()["include"]) for word in ("-isystem", path)
    ]
    csrc = ROOT / "csrc"
    bindings = compiled(
        csrc / "bindings_cuda.cpp", place / "bindings.o", csrc, *headers, *NAMES, "-DLGF_MODULE=_cuda_model"
    )
    model = compiled(ROOT / "tests" / "cuda_model" / "model.cpp", place / "model.o", csrc, "-O1")
    return {"bindings_cuda.cpp": bindings, "model.cpp": model} | kernels(place, csrc, sources(csrc))


def sources(csrc: Path) -> list[Path]:
    return sorted((csrc / "cuda").glob("*.cu"))


def kernels(place: Path, csrc: Path, of: list[Path]) -> dict[str, Path]:
    return {source.name: compiled(source, place / f"{source.stem}.o", csrc, "-O1") for source in of}


def module(place: Path, objects: dict[str, Path], csrc: Path | None = None):
    """The module with the kernels of `csrc` where these differ, and the model's own functions."""
    if csrc is not None:
        objects = objects | kernels(place, csrc, [source for source in sources(csrc) if differs(source, csrc)])
    library = place / "_cuda_model.so"
    run(*COMPILER, "-shared", *SANITIZE, *objects.values(), "-o", library)
    # pybind11 keeps one module of each full name: every build needs one of its own.
    spec = importlib.util.spec_from_file_location(f"{place.name}._cuda_model", library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    functions = ctypes.CDLL(str(library))
    functions.lgf_model_bank_conflicts.restype = ctypes.c_int64
    return loaded, functions


def differs(source: Path, csrc: Path) -> bool:
    """Whether a source of this copy, or anything that it includes, is not as it is in the repository."""
    listed = subprocess.run([*COMPILER, "-MM", f"-I{csrc}", f"-I{ROOT / 'tests' / 'cuda_model'}", "-x", "c++", source],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    own = (Path(word).resolve() for word in listed.split() if str(csrc) in word)
    return any(path.read_bytes() != (ROOT / "csrc" / path.relative_to(csrc.resolve())).read_bytes() for path in own)


def broken(place: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of the sources with one thing wrong."""
    shutil.copytree(ROOT / "csrc", place / "csrc")
    path = place / "csrc" / "cuda" / file
    text = path.read_text()
    assert text.count(right) == 1, f"{file} says {right!r} {text.count(right)} times"
    path.write_text(text.replace(right, wrong))
    return place / "csrc"
