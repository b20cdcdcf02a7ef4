"""Build of the CUDA module's sources and bindings for the model of a GPU: a Python module that runs them on the CPU."""

import ctypes
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from support.builds import once, run

ROOT = Path(__file__).parents[3]
MODEL = Path(__file__).parent
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


@cache
def pattern() -> list[str]:
    """Return the option, if the compiler has it."""
    known = subprocess.run([*COMPILER, PATTERN, "-fsyntax-only", "-x", "c++", os.devnull], capture_output=True)
    return [] if known.returncode else [PATTERN]


def compiled(source: Path, output: Path, csrc: Path, *options) -> Path:
    """Compile a source, unless another process has done so or is doing so."""
    includes = [f"-I{csrc}", f"-I{MODEL}"]
    command = (*COMPILER, *FLAGS, *pattern(), *SANITIZE, *includes, *options, "-x", "c++", "-c", source, "-o", output)
    return once(output, lambda: run(*command))


def objects(place: Path) -> dict[str, Path]:
    """Compile the bindings, the kernels and the model's scheduler: source, as a path within csrc or the model, -> object."""
    import pybind11

    headers = [
        word for path in (pybind11.get_include(), sysconfig.get_paths()["include"]) for word in ("-isystem", path)
    ]
    csrc = ROOT / "csrc"
    bindings = sorted((csrc / "cuda").rglob("*.cpp"))
    options = {
        **dict.fromkeys(bindings, (*headers, *NAMES, "-DLGF_MODULE=_cuda_model")),
        MODEL / "model.cpp": ("-O2",),
        # For the compiler's warnings, some of which an optimizer finds: nearly all of the time is the model's own.
        **dict.fromkeys(sources(csrc), ("-O1",)),
    }
    with ThreadPoolExecutor() as pool:  # side by side, as far as there are processors that have nothing else to do
        jobs = {
            name_of(source, csrc): pool.submit(compiled, source, object_of(source, csrc, place), csrc, *of_source)
            for source, of_source in options.items()
        }
    return {name: job.result() for name, job in jobs.items()}


def sources(csrc: Path) -> list[Path]:
    return sorted((csrc / "cuda").rglob("*.cu"))


def name_of(source: Path, csrc: Path) -> str:
    return source.relative_to(csrc if csrc in source.parents else MODEL).as_posix()


def object_of(source: Path, csrc: Path, place: Path) -> Path:
    return place / (name_of(source, csrc).replace("/", "-") + ".o")


def module(place: Path, objects: dict[str, Path], csrc: Path | None = None):
    """Link the module, with the kernels of `csrc` where these differ. Return it and the model's own functions."""
    if csrc is not None:
        changed = [source for source in sources(csrc) if differs(name_of(source, csrc), csrc)]
        # Not optimized: that takes half as long, and the tests of a mistake no longer.
        objects = objects | {
            name_of(source, csrc): compiled(source, object_of(source, csrc, place), csrc, "-O0") for source in changed
        }
    library = place / "_cuda_model.so"
    run(*COMPILER, "-shared", *SANITIZE, *objects.values(), "-o", library)
    # pybind11 keeps one module of each full name: every build needs one of its own.
    spec = importlib.util.spec_from_file_location(f"{place.name}._cuda_model", library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    functions = ctypes.CDLL(str(library))
    functions.lgf_model_bank_conflicts.restype = ctypes.c_int64
    return loaded, functions


@cache
def read_for(source: str) -> list[Path]:
    """Return a source and all that it includes, as paths within csrc."""
    csrc = ROOT / "csrc"
    command = [*COMPILER, "-MM", f"-I{csrc}", f"-I{MODEL}", "-x", "c++", csrc / source]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [Path(word).resolve() for word in listed.split() if str(csrc) in word]
    return [path.relative_to(csrc.resolve()) for path in paths]


def differs(source: str, csrc: Path) -> bool:
    """Return whether this copy of csrc differs from the repository's in what is read for a source."""
    return any((csrc / path).read_bytes() != (ROOT / "csrc" / path).read_bytes() for path in read_for(source))


def broken(place: Path, file: str, right: str, wrong: str) -> Path:
    """Return a copy of the sources with one mistake."""
    shutil.copytree(ROOT / "csrc", place / "csrc")
    path = place / "csrc" / "cuda" / file
    text = path.read_text()
    assert text.count(right) == 1, f"{file} says {right!r} {text.count(right)} times"
    path.write_text(text.replace(right, wrong))
    return place / "csrc"
