"""Global memory of a launch, with the tensors of its arguments."""

import ctypes

import numpy as np
import torch

from .memory import Memory

#: Where global memory begins, and what lies between two tensors there.
ORIGIN, GAP = 0x7F0000000000, 4096


class Arena:
    """Global memory with the storages of some tensors in it, of which only the elements of the tensors may be accessed."""

    def __init__(self, tensors: list[torch.Tensor], granule: int):
        self.storages, end = {}, GAP
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.storages:
                start = end + (storage.data_ptr() - end) % 256
                self.storages[storage.data_ptr()] = (start, storage_bytes(storage))
                end = start + storage.nbytes() + GAP
        size = end // granule * granule
        content, valid = np.zeros(size, np.uint8), np.zeros(size, bool)
        for start, data in self.storages.values():
            content[start : start + len(data)] = data
        for tensor in tensors:
            start, strides = self.address(tensor) - ORIGIN, [tensor.itemsize * stride for stride in tensor.stride()]
            elements = (*tensor.shape, tensor.itemsize), (*strides, 1)
            np.lib.stride_tricks.as_strided(valid[start:], *elements)[...] = True
        self.memory = Memory("global memory", content, granule, len(content), ORIGIN, valid.reshape(-1, granule).all(1))

    def address(self, tensor: torch.Tensor) -> int:
        return self.moved(tensor.data_ptr())

    def moved(self, pointer: int) -> int | None:
        """Return the address in global memory of what this process has at an address, or None if no tensor is there."""
        for storage, (start, data) in self.storages.items():
            if storage <= pointer < storage + len(data):
                return ORIGIN + start + pointer - storage
        return None

    def give_back(self) -> None:
        """Copy what the kernel has written to the tensors."""
        for start, data in self.storages.values():
            data[:] = self.memory.content[start : start + len(data)]


def storage_bytes(storage: torch.UntypedStorage) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()))
