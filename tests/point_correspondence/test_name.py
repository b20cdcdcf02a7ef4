"""The name that the function `lgf_kernels.point_correspondence` and the family's folder share."""

import importlib
import pickle
import pkgutil
import sys
from unittest import mock

import pytest
import torch

import lgf_kernels as lgf

FOLDER = "lgf_kernels.point_correspondence"


@pytest.fixture(params=["from", "importlib", "import", "reload"], autouse=True)
def imported(request):
    """Import a module of the folder in one of the ways that would put the folder in the function's place."""
    before = lgf.point_correspondence
    if request.param == "from":
        from lgf_kernels.point_correspondence import portable  # noqa: F401
    elif request.param == "importlib":
        importlib.import_module(FOLDER)
    elif request.param == "import":
        import lgf_kernels.point_correspondence.options  # noqa: F401
    else:
        importlib.reload(sys.modules[FOLDER])
    assert lgf.point_correspondence is before


def test_the_public_name_is_the_function():
    places = lgf.point_correspondence(torch.randn(1, 2, 4, 5, 8), torch.tensor([[[0, 1.0, 2.0]]]))
    assert places.shape == (1, 1, 2, 2)
    assert pickle.loads(pickle.dumps(lgf.point_correspondence)) is lgf.point_correspondence
    assert "window=2" in repr(pickle.loads(pickle.dumps(lgf.PointCorrespondenceLoss(window=2))))


def test_the_modules_of_the_folder_are_found_by_their_paths():
    from lgf_kernels.point_correspondence import api

    assert importlib.import_module(f"{FOLDER}.api") is api is pkgutil.resolve_name(f"{FOLDER}.api")
    assert api.point_correspondence is lgf.point_correspondence
    with mock.patch(f"{FOLDER}.api.resolve", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        lgf.point_correspondence(torch.randn(1, 2, 4, 5, 8), torch.tensor([[[0, 1.0, 2.0]]]))
