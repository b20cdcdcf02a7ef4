"""The C++ modules: loading them, saying why one is not there, and what differs in calling them.

`lgf_kernels._cpu` serves CPU tensors, `lgf_kernels._cuda` CUDA tensors. They know nothing of torch: the launchers in this
package pass them data pointers, sizes and strides. A module that is missing or fails to load keeps its reason, for
`lgf doctor` and for error texts.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from .. import gpu
from ..numerics import accumulate_dtype
from ..options import LgfOptions

#: What each module implements, by the type of device whose tensors it takes.
MODULES = {"cpu": "_cpu", "cuda": "_cuda"}
OPERATORS = {"cpu": ("local_gram_flow", "lgf_kl"), "cuda": ("local_gram_flow", "lgf_kl", "token_relation")}
#: What `make kernel-counts` says of the CUDA kernels against Triton's, forward and backward at least, on an H200.
COUNTED = {
    "lgf_kl": "counted 279 us against Triton's 484 us for 49 x 64 x 64 tokens of 256 channels in bfloat16 and two teachers"
}
WANTING = {"cpu": ("a C++17 compiler", "LGF_NATIVE"), "cuda": ("nvcc, the CUDA compiler", "LGF_CUDA")}


@functools.cache
def load(device_type: str) -> tuple[ModuleType | None, str | None]:
    """The module for a type of device, or None and the reason why there is none."""
    name = MODULES.get(device_type)
    if name is None:
        return None, f"there is no native module for {device_type} tensors"
    full_name = f"lgf_kernels.{name}"
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


def why_not(operator: str, device: str) -> str | None:
    """None if there is a native module for this device and it has the operator, else the reason why not."""
    device_type = torch.device(device).type
    _, reason = load(device_type)
    if reason:
        return reason
    if operator not in OPERATORS[device_type]:
        return f"{operator} has no native kernel for {device_type} tensors"
    return gpu.why_not("native CUDA kernels", device) if device_type == "cuda" else None


def why_not_by_itself(operator: str, device: str) -> str | None:
    """Why the native kernel of an operator, though it can run, is not chosen unless it is asked for; None if it is.

    Counts alone do not decide: code that has never run on a GPU must not be what a training run meets unasked.
    """
    if torch.device(device).type != "cuda":
        return None
    counted = COUNTED.get(operator)
    return "its CUDA kernel has not been measured yet" + (f" ({counted})" if counted else "")


def module(tensor: Tensor) -> ModuleType:
    """The module that takes this tensor, once `why_not` has found nothing against it."""
    return load(tensor.device.type)[0]


def takes_streams(tensor: Tensor) -> bool:
    """Whether the module that takes this tensor is the CUDA one."""
    return tensor.device.type == "cuda"


def described(tensor: Tensor) -> tuple:
    """A tensor (B, T, H, W, channels) as the modules take it: address, type, channels, the four outer strides."""
    return tensor.data_ptr(), dtype_name(tensor), tensor.shape[-1], tensor.stride()[:4]


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def window_row(tensor: Tensor, window: int) -> int:
    """Numbers from one row of a window to the next in a gradient by the logits (B, T-1, H, W, K * row).

    The CUDA kernels leave one unused after each, which aligns the rows of a window of 7.
    """
    return window + takes_streams(tensor)


def empty_norms(features: Tensor, options: LgfOptions, count: int = 1) -> Tensor | None:
    """Room for reciprocal norms (count, B, T, H, W), which only the CUDA kernels keep, and only for cosine similarity."""
    if not takes_streams(features) or options.similarity != "cosine":
        return None
    return features.new_empty((count, *features.shape[:4]), dtype=accumulate_dtype(features))


def reciprocal_norms(features: Tensor, norms: Tensor) -> None:
    """Let the CUDA module write 1 / max(||f||, 1e-6) of features (B, T, H, W, C) into norms."""
    module(features).reciprocal_norms(
        described(features),
        tuple(features.shape[:4]),
        norms.data_ptr(),
        dtype=dtype_name(norms),
        **execution(features),
    )


def execution(tensor: Tensor) -> dict[str, int]:
    """How the module that takes this tensor is to run: on torch's threads, or on its current stream."""
    if not takes_streams(tensor):
        return {"num_threads": torch.get_num_threads()}
    return {"device": tensor.get_device(), "stream": torch.cuda.current_stream(tensor.device).cuda_stream}
