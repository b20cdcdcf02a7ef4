"""The C++ modules: loading them, and saying why one is not there.

`lgf_kernels._cpu` serves CPU tensors. It knows nothing of torch: the launchers in this package pass it data pointers,
sizes and strides. A module that is missing or fails to load keeps its reason, for `lgf doctor` and for error texts.
"""

import functools
import importlib
from types import ModuleType

from torch import Tensor

#: What each module implements, by the type of device whose tensors it takes.
MODULES = {"cpu": "_cpu"}
OPERATORS = {"cpu": ("local_gram_flow", "lgf_kl")}


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
        return None, (
            f"{full_name} was not built when the package was installed, usually for want of a C++17 compiler; "
            "with LGF_NATIVE=on the installation stops and says why"
        )
    except Exception as error:
        return None, f"{full_name} failed to load: {error}"


def why_not(operator: str, device_type: str) -> str | None:
    """None if the native module for this type of device has the operator, else the reason why not."""
    _, reason = load(device_type)
    if reason:
        return reason
    if operator not in OPERATORS[device_type]:
        return f"{operator} has no native kernel for {device_type} tensors"
    return None


def module(tensor: Tensor) -> ModuleType:
    """The module that takes this tensor, once `why_not` has found nothing against it."""
    return load(tensor.device.type)[0]


def described(tensor: Tensor) -> tuple:
    """A tensor (B, T, H, W, channels) as the modules take it: address, type, channels, the four outer strides."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return tensor.data_ptr(), dtype, tensor.shape[-1], tensor.stride()[:4]
