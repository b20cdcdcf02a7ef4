"""Fixtures of all tests: a fixed seed, a known environment, and NaN in uninitialised memory, which shows unwritten outputs."""

import importlib.util
import os
from collections import Counter

# Tests run side by side, each with one thread, because more would compete for the processors. Tests of threads set more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# cuBLAS is deterministic only with a workspace of fixed size, and reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which must be asked for before triton is imported.
INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"


from models.aarch64.fixtures import emulated, isa  # noqa: E402, F401
from models.cuda.fixtures import built, model, objects, tensor_cores, way  # noqa: E402, F401
from models.ptx.fixtures import nvcc_model  # noqa: E402, F401
from support.families import of_every_family  # noqa: E402


@pytest.hookimpl(trylast=True)  # after those that are left out have gone
def pytest_collection_modifyitems(items):
    """Put files of few tests first. They are the long ones (compilers, models of a GPU), and a process that began one of them last
    would be left alone with it at the end."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])


@pytest.fixture(autouse=True, scope="session")
def known_environment():
    """Without the variables of a shell, a git hook, a cluster or continuous integration. They would decide which backend runs,
    what is built, which repository git uses, what a pytest within a test does, what is coloured or silent, and the rank."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "LGF_BACKEND LGF_NATIVE LGF_CUDA LGF_AUTOTUNE LGF_SCRATCH_MIB GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE "
            "PYTEST_ADDOPTS FORCE_COLOR NO_COLOR TQDM_DISABLE RANK LOCAL_RANK WORLD_SIZE"
        ).split():
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Cut the kernels for the interpreter, whose time goes with programs and steps, and leave out its check of every sum.

    The `test_triton*.py` of the families run the configurations that this leaves out, and the checks for overflow.
    """
    if INTERPRETED:
        from triton.runtime import interpreter

        for cases in of_every_family("triton_cases").values():
            cases.quicken()
        object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
        mend_loops(interpreter)
    yield


@pytest.fixture
def overflow_checks():
    """A check of every sum and product of integers for overflow, which other tests leave out because it takes time."""
    from triton.runtime.interpreter import interpreter_builder

    object.__setattr__(interpreter_builder.options, "sanitize_overflow", True)
    yield
    object.__setattr__(interpreter_builder.options, "sanitize_overflow", False)


def mend_loops(interpreter):
    """Let numpy 2.4 and newer accept the end of a loop as Triton 3.6 passes it."""
    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = mended


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns: a wide one has boxes of help side by side, so that their lines are mixed in the text."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """NaN in what `torch.empty` returns, which torch writes while deterministic algorithms are on."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
