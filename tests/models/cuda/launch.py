"""The library's own launchers on the model of a GPU."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from lgf_kernels.core import native, registry
from models.cuda import build

#: The sanitizer ends the whole process for what a broken kernel may do.
broken_on_purpose = pytest.mark.skipif(build.SANITIZED, reason="a sanitizer would end the tests")


def mistakes(of_each_kind: dict[str, tuple], more: dict[str, tuple]):
    """Parametrize a test by mistakes, for each of which kernels are compiled: continuous integration does without the second."""
    rows = [pytest.param(mistake, id=name) for name, mistake in of_each_kind.items()]
    rows += [pytest.param(mistake, id=name, marks=pytest.mark.slow) for name, mistake in more.items()]
    return pytest.mark.parametrize("mistake", rows)


def launched_on(module, monkeypatch):
    """The launchers take CPU tensors to a module that believes they are on a GPU."""
    monkeypatch.setattr(native, "load", lambda device_type: (module, None))
    for name, operator in registry.OPERATORS.items():
        (cuda,) = (row for row in operator.backends if row.module == "cuda")
        others = [row for row in operator.backends if row.name != "native"]
        rows = (cuda._replace(device_types=("cpu",)), *others)
        monkeypatch.setitem(registry.OPERATORS, name, operator._replace(backends=rows))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))


def work(model, run):
    """Blocks, bytes copied and staged, matrix loads, products: what a call adds to the model's counts."""
    counts = torch.zeros(2, 5, dtype=torch.int64)
    model.lgf_model_counts(ctypes.c_void_p(counts[0].data_ptr()))
    result = run()
    model.lgf_model_counts(ctypes.c_void_p(counts[1].data_ptr()))
    return result, (counts[1] - counts[0]).tolist()
