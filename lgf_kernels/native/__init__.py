"""The C++ modules: loading them, saying why one is not there, and what differs in calling them.

`lgf_kernels._cpu` serves CPU tensors, `lgf_kernels._cuda` CUDA tensors. They know nothing of torch: the launchers in this
package pass them data pointers, sizes and strides. A module that is missing or fails to load keeps its reason, for
`lgf doctor` and for error texts.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import gpu
from ..numerics import accumulate_dtype
from ..options import LgfOptions

#: What each module implements, by the type of device whose tensors it takes.
MODULES = {"cpu": "_cpu", "cuda": "_cuda"}
OPERATORS = {"cpu": ("local_gram_flow", "lgf_kl"), "cuda": ("local_gram_flow", "lgf_kl", "token_relation")}
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


def why_not_by_itself(device: str) -> str | None:
    """Why the native module for this device, though it can run, is not chosen unless it is asked for; None if it is."""
    return "its CUDA kernels have not been measured yet" if torch.device(device).type == "cuda" else None


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


def described_gradient(features: Tensor, g: Tensor, scale: Tensor | None) -> tuple:
    """A gradient by the logits (B, T-1, H, W, K*K), contiguous, and what scales its tokens, as the module takes them.

    The CUDA module reads any floating type, and one number for all tokens where that is what `scale` holds.
    """
    if not takes_streams(features):
        return g.data_ptr(), None if scale is None else scale.data_ptr()
    one_number = scale is not None and one_number_expanded(scale)
    return g.data_ptr(), dtype_name(g), None if scale is None else scale.data_ptr(), one_number


def scale_as_taken(features: Tensor, scale: Tensor) -> Tensor:
    """The scale (B, T-1, H, W) in the form that `described_gradient` describes."""
    return scale if takes_streams(features) and one_number_expanded(scale) else scale.contiguous()


def one_number_expanded(tensor: Tensor) -> bool:
    return not any(tensor.stride())


def residual_dtype(student: Tensor) -> torch.dtype:
    """The type in which a forward keeps d KL_i / d zS: on GPUs no finer than the student's own gradient will be."""
    return torch.bfloat16 if takes_streams(student) and student.dtype == torch.bfloat16 else accumulate_dtype(student)


def norms_workspace(features: Sequence[Tensor], options: LgfOptions) -> Tensor | None:
    """Room for the reciprocal norms of these features, which the CUDA kernels read from memory."""
    if not takes_streams(features[0]) or options.similarity != "cosine":
        return None
    dtype = accumulate_dtype(features[-1])
    return features[-1].new_empty((len(features), *features[-1].shape[:4]), dtype=dtype)


def execution(tensor: Tensor, workspace: Tensor | None) -> dict[str, int | None]:
    """How the module that takes this tensor is to run: on torch's threads, or on its current stream."""
    if not takes_streams(tensor):
        return {"num_threads": torch.get_num_threads()}
    return {"workspace": None if workspace is None else workspace.data_ptr(), **stream_of(tensor)}


def stream_of(tensor: Tensor) -> dict[str, int]:
    """Where the CUDA module is to run."""
    return {"device": tensor.get_device(), "stream": torch.cuda.current_stream(tensor.device).cuda_stream}
