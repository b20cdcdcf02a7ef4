"""What every test starts from: a fixed seed, a known environment, and uninitialised memory full of NaN so that an unwritten
output shows."""

import importlib.util
import os

# Tests run side by side, each with one thread: more of them only get into each other's way. What is about threads asks for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# cuBLAS is deterministic only with a workspace of fixed size, and reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which must be asked for before triton is imported.
INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"


from models.cuda.fixtures import built, model, objects  # noqa: E402, F401


@pytest.fixture(autouse=True, scope="session")
def known_environment():
    """What a shell, a git hook, a cluster or continuous integration sets decides nothing: which backend runs and what is built,
    which repository git means, what a pytest within a test does, what is coloured or silent, which of many processes this is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "LGF_BACKEND LGF_NATIVE LGF_CUDA LGF_AUTOTUNE LGF_SCRATCH_MIB GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE "
            "PYTEST_ADDOPTS FORCE_COLOR NO_COLOR TQDM_DISABLE RANK LOCAL_RANK WORLD_SIZE"
        ).split():
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """The interpreter pays for programs and steps, not for numbers: few and large ones, and no check of every sum.

    The `test_triton.py` of the families run the configurations that this leaves out, and the checks for overflow.
    """
    if INTERPRETED:
        from triton.runtime import interpreter

        from lgf_kernels.gram_flow import triton_configs as flow
        from lgf_kernels.token_relation import triton_configs as relation

        flow.FORWARD.update({size: [flow.Forward(8, 8, 256, 8, 2)] for size in flow.FORWARD})
        flow.BACKWARD.update({size: [flow.Backward(8, 8, 16, 512, 8, 2)] for size in flow.BACKWARD})
        relation.RELATION_TILES.update(dict.fromkeys(relation.RELATION_TILES, (256, 256)))
        relation.DISTANCES.update({size: [relation.Distances(256, 8, 2)] for size in relation.DISTANCES})
        relation.PRODUCTS.update({size: [relation.Products(256, 256, 8, 2)] for size in relation.PRODUCTS})
        object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
        mend_loops(interpreter)
    yield


def mend_loops(interpreter):
    """Triton 3.6 makes the end of a loop an int in a way that numpy 2.4 and newer refuse."""
    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = mended


@pytest.fixture
def terminal(monkeypatch):
    """Of 80 columns: a wide one has boxes of help next to each other, and the lines of one run into those of the other."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch fills what `torch.empty` returns with NaN while deterministic algorithms are on."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
