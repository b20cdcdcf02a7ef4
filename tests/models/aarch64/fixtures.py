"""The instruction sets that tests of the CPU kernels run on: this machine's, and AArch64 in an emulator."""

import pytest
from support.builds import shared_folder

from lgf_kernels.core import native

from . import build
from .emulator import Emulated, launched_on

CPU, REASON = native.load("cpu")
AARCH64 = "aarch64"


@pytest.fixture(scope="session")
def emulated(tmp_path_factory, request):
    """The kernels on an emulated AArch64 processor."""
    if reason := build.unsupported_reason():
        pytest.skip(reason)
    kernels = Emulated(build.program(shared_folder("aarch64", tmp_path_factory, request.config)))
    yield kernels
    kernels.stop()


# Compiling for AArch64 alone takes too long for the quick run.
@pytest.fixture(params=[*(CPU.isas() if CPU else []), pytest.param(AARCH64, marks=pytest.mark.slow)])
def isa(request, monkeypatch):
    """The instruction set whose kernels run."""
    if request.param == AARCH64:
        launched_on(request.getfixturevalue("emulated"), monkeypatch)
        yield AARCH64
        return
    best = CPU.build_info()["isa"]
    CPU.set_isa(request.param)
    yield request.param
    CPU.set_isa(best)
