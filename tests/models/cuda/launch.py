"""The library's own launchers on the model of a GPU."""

import ctypes
from types import SimpleNamespace

import torch
from support import numerics

from lgf_kernels.core import native, registry

HALVES = [torch.bfloat16, torch.float16]
#: Errors of a gradient that is rounded once, and a little for products of rounded coefficients.
GRADIENT = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 2e-6, torch.float64: 1e-12}


def against_reference(loss, student, others, gradient=None, **options):
    """Compare the kernels with the oracle. `gradient`: the largest error of the gradient, by default its type's."""
    value, gradient = 1e-12 if student.dtype == torch.float64 else 2e-6, gradient or GRADIENT[student.dtype]
    numerics.against_reference(loss, student, others, backend="native", value=value, gradient=gradient, **options)


def launched_on(module, monkeypatch):
    """Let the launchers give CPU tensors to the module of the model, which treats them as tensors on a GPU."""
    monkeypatch.setattr(native, "load", lambda device_type: (module, None))
    for name, operator in registry.OPERATORS.items():
        cuda = [row._replace(device_types=("cpu",)) for row in operator.backends if row.module == "cuda"]
        rows = (*cuda, *(row for row in operator.backends if row.name != "native"))
        monkeypatch.setitem(registry.OPERATORS, name, operator._replace(backends=rows))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))


def work(model, run):
    """Return a call's result and its blocks, bytes copied and staged, matrix loads and products, as the model counts them."""
    counts = torch.zeros(2, 5, dtype=torch.int64)
    model.lgf_model_counts(ctypes.c_void_p(counts[0].data_ptr()))
    result = run()
    model.lgf_model_counts(ctypes.c_void_p(counts[1].data_ptr()))
    return result, (counts[1] - counts[0]).tolist()
