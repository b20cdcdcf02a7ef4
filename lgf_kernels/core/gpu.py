"""Which GPUs the library's own kernels run on, whether Triton is there to compile some, and how much scratch they take."""

import functools
import importlib
import os

import torch

from .registry import Backend, Call

#: The oldest tensor cores that multiply bfloat16, and asynchronous copies: Ampere's.
OLDEST = (8, 0)


def unsupported_reason(kernels: str, device: str) -> str | None:
    """None if this is a GPU that the library's own kernels run on, else the reason, said of `kernels`."""
    kind = "ROCm" if torch.version.hip else torch.device(device).type
    if kind != "cuda":
        return f"{kernels} run on NVIDIA GPUs, not on {kind} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return "{} need sm_{}{} or newer, this is sm_{}{}".format(kernels, *OLDEST, *capability)
    return None


def triton(module: str) -> Backend:
    """The backend whose kernels are in a module of the family."""
    return Backend("triton", module, triton_unsupported_reason, triton_unchosen_reason)


def triton_unsupported_reason(call: Call) -> str | None:
    """None if Triton kernels run on this device, else the reason. On CPUs they are interpreted, on request."""
    if call.device_type != "cpu":
        return unsupported_reason("Triton kernels", call.device) or triton_import_failure()
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels run on CUDA devices; on the CPU only interpreted, for tests, with TRITON_INTERPRET=1"
    return triton_import_failure()


def triton_unchosen_reason(call: Call) -> str | None:
    return None if call.device_type == "cuda" else "never chosen by itself where it is interpreted"


@functools.cache
def triton_import_failure() -> str | None:
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"triton cannot be imported: {error}"
    return None


def scratch_bytes(default_mib: int) -> int:
    """Return the most that kernels store for themselves at a time: LGF_SCRATCH_MIB mebibytes, or the default."""
    given = os.environ.get("LGF_SCRATCH_MIB", str(default_mib))
    if not given.isdecimal() or int(given) == 0:
        raise ValueError(
            f"LGF_SCRATCH_MIB must be a number of mebibytes, such as {default_mib}, the default here; got {given!r}. "
            "Less takes the work in more and smaller parts."
        )
    return int(given) << 20
