"""The functions of the CPU module on an emulated AArch64 processor, for the library's own launchers.

The launchers pass addresses. Those are of memory of this process, and the kernels run in another, so that the memory of
all tensors of a call is sent there and back. Which tensors these are is noted when a launcher asks for an address.
"""

import ctypes
import os
import struct
import subprocess
from functools import partial
from pathlib import Path

import torch

from lgf_kernels.core import native

from . import build


class Tensors:
    """Where the memory of tensors begins and how long it is, by the addresses of the tensors."""

    def __init__(self):
        self.memory: dict[int, tuple[int, int]] = {}
        self.ask = torch.Tensor.data_ptr

    def data_ptr(self, tensor: torch.Tensor) -> int:
        address, storage = self.ask(tensor), tensor.untyped_storage()
        self.memory[address] = storage.data_ptr(), storage.nbytes()
        return address


class Emulated:
    """The stand-in for `lgf_kernels._cpu`: any function that a family's bindings define."""

    def __init__(self, program: Path):
        self.program = program
        self.tensors = Tensors()
        self.process = None

    def __getattr__(self, name: str):
        return partial(self.call, name)

    def call(self, name: str, *values, **keywords) -> None:
        if self.process is None:
            self.start()
        message = Message(self.tensors.memory)
        called = text(name) + message.packed(values)
        called += struct.pack("<I", len(keywords))
        called += b"".join(text(keyword) + message.packed(value) for keyword, value in keywords.items())
        try:
            self.process.stdin.write(message.packed_memory() + called)
            self.process.stdin.flush()
            self.take_answer(message.memories)
        except (BrokenPipeError, EOFError):
            status = self.process.wait()
            self.stop()
            raise RuntimeError(f"{name} on AArch64 ended the process with status {status}") from None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait would take emulated processors from others
        command = [build.emulator(), self.program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def take_answer(self, memories: list[tuple[int, int]]) -> None:
        """Write what the kernels have made of the memory, or raise what the bindings have."""
        kind = self.read(1)
        if kind == b"r":
            for address, size in memories:
                ctypes.memmove(address, self.read(size), size)
            return
        message = self.read(*struct.unpack("<I", self.read(4))).decode()
        raise (ValueError if kind == b"v" else RuntimeError)(message)

    def read(self, size: int) -> bytes:
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data


class Message:
    """Values of a call as bytes, and the memory that the addresses among them are of."""

    def __init__(self, known: dict[int, tuple[int, int]]):
        self.known = known
        self.memories: list[tuple[int, int]] = []

    def packed(self, value) -> bytes:
        if value is None:
            return b"n"
        if isinstance(value, str):
            return b"s" + text(value)
        if isinstance(value, float):
            return b"f" + struct.pack("<d", value)
        if isinstance(value, (tuple, list)):
            return b"l" + struct.pack("<I", len(value)) + b"".join(map(self.packed, value))
        if value and value in self.known:
            return self.address(value)
        return b"i" + struct.pack("<q", value)

    def address(self, address: int) -> bytes:
        memory = self.known[address]
        if memory not in self.memories:
            self.memories.append(memory)
        return b"a" + struct.pack("<IQ", self.memories.index(memory), address - memory[0])

    def packed_memory(self) -> bytes:
        parts = [struct.pack("<Q", size) + ctypes.string_at(address, size) for address, size in self.memories]
        return struct.pack("<I", len(parts)) + b"".join(parts)


def text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def launched_on(emulated: Emulated, monkeypatch) -> None:
    """Let the launchers of CPU tensors call the emulated functions."""
    monkeypatch.setattr(native, "load", lambda device_type: (emulated, None))
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: emulated.tensors.data_ptr(tensor))
