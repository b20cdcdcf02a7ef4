"""The model of a GPU, built once for all tests that run the CUDA kernels on it."""

import pytest
from support.builds import shared_folder

from . import build
from .launch import launched_on


@pytest.fixture(scope="session")
def objects(tmp_path_factory, request):
    """The compiled sources."""
    pytest.importorskip("pybind11", reason="the bindings need pybind11's headers")
    if not build.COMPILER:
        pytest.skip("there is no C++ compiler to build the model with")
    return build.objects(shared_folder("objects", tmp_path_factory, request.config))


@pytest.fixture(scope="session")
def built(objects, tmp_path_factory):
    return build.module(tmp_path_factory.mktemp("model"), objects)


@pytest.fixture
def model(built, monkeypatch):
    """Kernels run on the model. Afterwards no matrix load may have met the same bank twice."""
    module, functions = built
    launched_on(module, monkeypatch)
    before = functions.lgf_model_bank_conflicts()
    yield functions
    functions.lgf_model_reverse(0)
    functions.lgf_model_hopper(0)
    functions.lgf_model_multiprocessors(1, 228)
    assert functions.lgf_model_bank_conflicts() == before


#: The ways to the tensor cores: of all GPUs from Ampere on, and Hopper's own.
WAYS = ("warps", "warpgroups")


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def tensor_cores(way, model):
    """The model by either way. A test may ask for the ways among its own products of options."""
    model.lgf_model_hopper(int(way == "warpgroups"))
    return model
