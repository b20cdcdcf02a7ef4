"""Launches of the CUDA C++ kernels on the model: the library's own launchers and bindings, and nvcc's PTX of the kernels."""

import ctypes
import traceback
from collections.abc import Callable

import numpy as np
import torch

from . import nvcc
from .arena import Arena
from .grid import prepared, run_grid
from .memory import Fault
from .spelling import Unknown

LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64
)


class Module:
    """The CUDA module, with a record of the tensors whose addresses a call of it has been given."""

    def __init__(self, module, monkeypatch):
        self.module, self.tensors = module, []
        data_ptr = torch.Tensor.data_ptr

        def recorded(tensor: torch.Tensor) -> int:
            self.tensors.append(tensor)
            return data_ptr(tensor)

        monkeypatch.setattr(torch.Tensor, "data_ptr", recorded)

    def __getattr__(self, name: str) -> Callable:
        def call(*arguments, **options):
            try:
                return getattr(self.module, name)(*arguments, **options)
            finally:
                self.tensors.clear()

        return call


class Launcher:
    """The launches of a module's kernels, compiled for an architecture. `edit` changes their PTX."""

    def __init__(self, module: Module, architecture: str, edit: Callable[[str], str] = str):
        self.module, self.architecture, self.edit = module, architecture, edit
        self.kernels = []  # launched so far
        self.function = LAUNCHER(self.launch)

    def launch(self, kernel: bytes, blocks: int, threads: int, shared_bytes: int, params: int, size: int) -> int:
        """Run a launch, and return the address of a text: empty, or why it failed, which the bindings raise."""
        message = ""
        try:
            data = np.frombuffer(ctypes.string_at(params, size), np.uint8).copy()
            self.run(kernel.decode(), blocks, threads, shared_bytes, data)
        except (Fault, Unknown) as error:
            message = str(error)
        except Exception:  # C++ passes on no more than its text
            message = traceback.format_exc()
        self.message = ctypes.create_string_buffer(message.encode())
        return ctypes.addressof(self.message)

    def run(self, name: str, blocks: int, threads: int, shared_bytes: int, params: np.ndarray) -> None:
        self.kernels.append(name.replace("lgf::cuda::", "").replace("lgf::", ""))
        kernel = prepared(self.edit(nvcc.compiled(name, self.architecture)))
        assert kernel.parameter_bytes == len(params), "two compilers, two layouts of the parameters"
        words = params[: len(params) // 8 * 8].view(np.uint64)
        tensors = [tensor for tensor in self.module.tensors if tensor.numel()]
        arena = Arena(tensors, kernel.granules["global"])
        for i, word in enumerate(words.tolist()):
            if (address := arena.moved(word)) is not None:
                words[i] = address
        run_grid(kernel, (blocks,), threads, shared_bytes, params, arena.memory)
        arena.give_back()
