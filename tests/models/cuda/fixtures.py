"""The model of a GPU (tests/models/cuda), built once for all tests that run the CUDA kernels on it."""

import pytest

from models.cuda import build
from models.cuda.launch import launched_on


@pytest.fixture(scope="session")
def objects(tmp_path_factory, request):
    """Where tests run in several processes, these share a folder above those of their own."""
    if hasattr(request.config, "workerinput"):
        place = tmp_path_factory.getbasetemp().parent / "objects"
        place.mkdir(exist_ok=True)
    else:
        place = tmp_path_factory.mktemp("objects")
    return build.objects(place)


@pytest.fixture(scope="session")
def built(objects, tmp_path_factory):
    return build.module(tmp_path_factory.mktemp("model"), objects)


@pytest.fixture
def model(built, monkeypatch):
    """Kernels run on the model, which says afterwards whether a matrix load met the same bank twice."""
    module, functions = built
    launched_on(module, monkeypatch)
    before = functions.lgf_model_bank_conflicts()
    yield functions
    functions.lgf_model_reverse(0)
    functions.lgf_model_hopper(0)
    functions.lgf_model_multiprocessors(1, 228)
    assert functions.lgf_model_bank_conflicts() == before
