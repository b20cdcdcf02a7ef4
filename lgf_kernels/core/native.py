"""The two C++ modules: loading, the reason if one is missing, and the arguments that launchers pass.

`lgf_kernels._cpu` is for CPU tensors, `lgf_kernels._cuda` for CUDA tensors. They do not depend on
torch: the launchers pass data pointers, sizes and strides. The reason why a module is missing or
fails to load is kept for `lgf doctor` and for error messages.
"""

import functools
import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from . import gpu
from .errors import BackendUnavailableError
from .registry import Call

#: Module by device type.
MODULES = {"cpu": "_cpu", "cuda": "_cuda"}
#: By device type: what building the module needs, and the variable that makes the installation fail
#: without it.
BUILD_NEEDS = {"cpu": ("a C++17 compiler", "LGF_NATIVE"), "cuda": ("nvcc, the CUDA compiler", "LGF_CUDA")}

#: Of the functions that the launchers call and their arguments: `kInterface` of csrc/common/interface.h, raised with it.
INTERFACE = 3
#: Of the CUDA module's kernels: float32 passes the general units, where Triton's kernels make three tf32 products.
CUDA_LIMITS = "tensor cores for bfloat16 and float16 alone"


@functools.cache
def load(device_type: str) -> tuple[ModuleType | None, str | None]:
    """Return the module for a device type and None, or None and the reason why there is no module."""
    full_name = f"lgf_kernels.{MODULES[device_type]}"
    try:
        module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name != full_name:
            return None, f"{full_name} failed to load: {error}"
        wanting, switch = BUILD_NEEDS[device_type]
        return None, (
            f"{full_name} was not built when the package was installed, usually for want of {wanting}; "
            f"with {switch}=on the installation stops and says why"
        )
    except Exception as error:
        return None, f"{full_name} failed to load: {error}"
    if module.build_info().get("interface") == INTERFACE:
        return module, None
    return None, (
        f"{full_name} was built from other sources than this package's; build it again: install the package anew (pip install "
        f"--force-reinstall --no-deps, or pip install -e . in a checkout) with {BUILD_NEEDS[device_type][1]}=on"
    )


def unsupported_reason(call: Call) -> str | None:
    """Return why the module of the call's device is missing, or the device cannot run it, or None.

    Raises:
        BackendUnavailableError: LGF_CPU_ISA names kernels that are not here: others would run in silence.
    """
    _, reason = load(call.device_type)
    if reason and call.device_type == "cpu" and "LGF_CPU_ISA" in os.environ:
        raise BackendUnavailableError(
            f"the variable LGF_CPU_ISA asks for the {os.environ['LGF_CPU_ISA']!r} kernels of lgf_kernels._cpu, which cannot "
            f"run: {reason}. Name an instruction set that is here, or unset it."
        )
    if reason or call.device_type != "cuda":
        return reason
    if reason := gpu.unsupported_reason("native CUDA kernels", call.device):
        return reason
    index = torch.device(call.device).index
    return loading_failure(torch.cuda.current_device() if index is None else index)


@functools.cache
def loading_failure(index: int) -> str | None:
    """Return why the CUDA module's kernels cannot be loaded on a device, or None. The driver is asked once.

    It may be older than the CUDA that the module was built with, or the module may hold no code for the device.
    """
    cuda, _ = load("cuda")
    try:
        with torch.cuda.device(index):
            cuda.probe(index)
    except RuntimeError as error:
        return f"the kernels of lgf_kernels._cuda cannot be loaded: {error}"
    return None


def module(tensor: Tensor) -> ModuleType:
    """Return the module for this tensor's device, for calls without an `unsupported_reason`."""
    return load(tensor.device.type)[0]


def described(tensor: Tensor) -> tuple:
    """Describe a tensor (B, T, H, W, C) for the modules: address, type, channels, the four outer strides.

    The stride of a dimension of size 1 is never used, but could rule out loads of 16 bytes: it is given as 0.
    """
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape[:4], tensor.stride(), strict=False))
    return tensor.data_ptr(), dtype_name(tensor), tensor.shape[-1], strides


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def threads() -> dict[str, int]:
    """Return the CPU module's execution arguments: as many threads as torch uses."""
    return {"num_threads": torch.get_num_threads()}


def stream(tensor: Tensor) -> dict[str, int]:
    """Return the CUDA module's execution arguments: torch's current stream of the tensor's device."""
    return {"device": tensor.get_device(), "stream": torch.cuda.current_stream(tensor.device).cuda_stream}


def reciprocal_norms(features: Tensor, norms: Tensor) -> None:
    """Write 1 / max(||f||, 1e-6) of features (B, T, H, W, C) into `norms`, by the CUDA module."""
    module(features).reciprocal_norms(
        described(features), tuple(features.shape[:4]), norms.data_ptr(), dtype=dtype_name(norms), **stream(features)
    )
