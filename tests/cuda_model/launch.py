"""The library's own launchers on the model of a GPU."""

from types import SimpleNamespace

import torch

from lgf_kernels import native


def launched_on(module, monkeypatch):
    """The launchers take CPU tensors to a module that believes they are on a GPU."""
    monkeypatch.setattr(native, "load", lambda device_type: (module, None))
    monkeypatch.setitem(native.OPERATORS, "cpu", native.OPERATORS["cuda"])
    for place in ("lgf_kernels.native", "lgf_kernels.native.lgf_kl"):
        monkeypatch.setattr(f"{place}.takes_streams", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
