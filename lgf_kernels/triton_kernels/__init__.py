"""Triton kernels for NVIDIA GPUs, and saying why they cannot run where they cannot.

`tiles` holds what all Local Gram Flow kernels share, `configs` how the kernels are cut and scheduled, `launch` what their
launchers share. On the CPU they run in Triton's interpreter, slowly and on request, which is how they are tested
without a GPU.
"""

import functools
import importlib
import os

import torch

from .. import gpu

OPERATORS = ("local_gram_flow", "lgf_kl", "token_relation")


def why_not(operator: str, device: str) -> str | None:
    """None if the Triton kernels run the operator on this device, else the reason why not."""
    if operator not in OPERATORS:
        return f"{operator} has no Triton kernel"
    if torch.device(device).type != "cpu":
        return gpu.why_not("Triton kernels", device) or import_failure()
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels run on CUDA devices; on the CPU only interpreted, for tests, with TRITON_INTERPRET=1"
    return import_failure()


@functools.cache
def import_failure() -> str | None:
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"triton cannot be imported: {error}"
    return None
