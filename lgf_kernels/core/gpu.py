"""Requirements of the GPU kernels: the architecture, Triton, and scratch memory."""

import functools
import importlib
import os

import torch

from .registry import Backend, Call

#: Ampere is the oldest architecture with bfloat16 tensor cores and asynchronous copies.
MIN_CAPABILITY = (8, 0)


def unsupported_reason(kernels: str, device: str) -> str | None:
    """Return why the device cannot run the library's GPU kernels, or None; `kernels` names them in the reason."""
    kind = "ROCm" if torch.version.hip else torch.device(device).type
    if kind != "cuda":
        return f"{kernels} run on NVIDIA GPUs, not on {kind} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return "{} need sm_{}{} or newer, this is sm_{}{}".format(kernels, *MIN_CAPABILITY, *capability)
    return None


def triton_backend(module: str) -> Backend:
    """Return the Triton backend with its kernels in this module of the family."""
    return Backend("triton", module, triton_unsupported_reason, triton_unchosen_reason, verified_on=("cuda",))


def triton_unsupported_reason(call: Call) -> str | None:
    """Return why Triton kernels cannot run on the call's device, or None.

    On the CPU they are interpreted, on request.
    """
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
