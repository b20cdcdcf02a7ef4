"""The CUDA C++ kernels as nvcc compiles them, on the model."""

import cuda_kernel_report
import pytest

from models.cuda.launch import launched_on

from .cuda_launcher import Launcher, Module

#: Shared memory of a multiprocessor in KiB, of the A100 and of Hopper.
SHARED = {"80": 164, "90a": 228}


@pytest.fixture
def nvcc_model(built, monkeypatch):
    """A function that lets launches run what nvcc compiles for "80" or "90a", edited if a function for that is given.

    The launchers see so many multiprocessors, and as much shared memory of each as is asked for, in KiB.
    """
    if cuda_kernel_report.nvcc() is None:
        pytest.skip("there is no nvcc")
    module, functions = built
    module = Module(module, monkeypatch)
    launched_on(module, monkeypatch)
    launchers = []  # C++ holds no reference to them

    def launched_for(architecture: str, edit=str, multiprocessors: int = 1, shared: int | None = None) -> Launcher:
        launcher = Launcher(module, architecture, edit)
        launchers.append(launcher)
        functions.lgf_model_hopper(int(architecture == "90a"))
        functions.lgf_model_multiprocessors(multiprocessors, shared or SHARED[architecture])
        functions.lgf_model_launcher(launcher.function)
        return launcher

    yield launched_for
    functions.lgf_model_launcher(None)
    functions.lgf_model_hopper(0)
    functions.lgf_model_multiprocessors(1, 228)
