"""Triton kernels for NVIDIA GPUs, and saying why they cannot run where they cannot.

`tiles` holds what all Local Gram Flow kernels share, `configs` how the kernels are cut and scheduled, `launch` what their
launchers share. On the CPU they run in Triton's interpreter, slowly and on request, which is how they are tested
without a GPU.
"""

import functools
import importlib
import os

import torch

OPERATORS = ("local_gram_flow", "lgf_kl", "token_relation")

#: The oldest tensor cores that multiply bfloat16: Ampere's.
OLDEST = (8, 0)


def why_not(operator: str, device: str) -> str | None:
    """None if the Triton kernels run the operator on this device, else the reason why not."""
    if operator not in OPERATORS:
        return f"{operator} has no Triton kernel"
    kind = torch.device(device).type
    if kind == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton kernels run on CUDA devices; on the CPU only interpreted, for tests, with TRITON_INTERPRET=1"
    elif kind != "cuda" or torch.version.hip:
        return f"Triton kernels run on NVIDIA GPUs, not on {'ROCm' if torch.version.hip else kind} devices"
    elif not torch.cuda.is_available():
        return "torch sees no CUDA device"
    elif torch.cuda.get_device_capability(device) < OLDEST:
        have = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        return "Triton kernels need sm_{}{} or newer, this is {}".format(*OLDEST, have)
    return import_failure()


@functools.cache
def import_failure() -> str | None:
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"triton cannot be imported: {error}"
    return None
