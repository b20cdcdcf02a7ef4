"""The two C++ modules: loading them, saying why one is not there, and what launchers pass them.

`lgf_kernels._cpu` serves CPU tensors, `lgf_kernels._cuda` CUDA tensors. They know nothing of torch: the launchers pass them data
pointers, sizes and strides. A module that is missing or fails to load keeps its reason, for `lgf doctor` and for error texts.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from . import gpu
from .registry import Call

#: The module for tensors of a type of device.
MODULES = {"cpu": "_cpu", "cuda": "_cuda"}
WANTING = {"cpu": ("a C++17 compiler", "LGF_NATIVE"), "cuda": ("nvcc, the CUDA compiler", "LGF_CUDA")}


@functools.cache
def load(device_type: str) -> tuple[ModuleType | None, str | None]:
    """The module for a type of device, or None and the reason why there is none."""
    full_name = f"lgf_kernels.{MODULES[device_type]}"
    try:
        return importlib.import_module(full_name), None
    except ModuleNotFoundError as error:
        if error.name != full_name:
            return None, f"{full_name} failed to load: {error}"
        wanting, switch = WANTING[device_type]
        return None, (
            f"{full_name} was not built when the package was installed, usually for want of {wanting}; "
            f"with {switch}=on the installation stops and says why"
        )
    except Exception as error:
        return None, f"{full_name} failed to load: {error}"


def unsupported_reason(call: Call) -> str | None:
    """None if there is a module for the call's device and the device runs it, else the reason."""
    _, reason = load(call.device_type)
    return reason or (
        gpu.unsupported_reason("native CUDA kernels", call.device) if call.device_type == "cuda" else None
    )


def cuda_unchosen_reason(call: Call) -> str:
    """Code that has never run on a GPU must not be what a training run meets unasked."""
    return f"{call.operator} is not chosen by itself for cuda tensors: its CUDA kernel has not been measured yet"


def module(tensor: Tensor) -> ModuleType:
    """The module that takes this tensor, once `unsupported_reason` has found nothing against it."""
    return load(tensor.device.type)[0]


def described(tensor: Tensor) -> tuple:
    """A tensor (B, T, H, W, channels) as the modules take it: address, type, channels, the four outer strides."""
    return tensor.data_ptr(), dtype_name(tensor), tensor.shape[-1], tensor.stride()[:4]


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def threads() -> dict[str, int]:
    """How the CPU module is to run: on as many threads as torch."""
    return {"num_threads": torch.get_num_threads()}


def stream(tensor: Tensor) -> dict[str, int]:
    """How the CUDA module is to run: on torch's current stream of the tensor's device."""
    return {"device": tensor.get_device(), "stream": torch.cuda.current_stream(tensor.device).cuda_stream}


def reciprocal_norms(features: Tensor, norms: Tensor) -> None:
    """Let the CUDA module write 1 / max(||f||, 1e-6) of features (B, T, H, W, C) into norms."""
    module(features).reciprocal_norms(
        described(features), tuple(features.shape[:4]), norms.data_ptr(), dtype=dtype_name(norms), **stream(features)
    )
