"""Bind and compile what the launchers launch, through Triton's own run-time path, without a GPU. Prints JSON lines.

Run by `test_compiled.py` in a process of its own, because in the tests' own process kernels are interpreted.
"""

import json
import os

os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lgf_kernels.core import triton_launch as launch
from lgf_kernels.gram_flow import triton_flow as local_gram_flow
from lgf_kernels.gram_flow import triton_loss as lgf_kl
from lgf_kernels.gram_flow.options import LgfOptions
from lgf_kernels.token_relation import triton_kernels as token_relation


class Hopper:
    """A driver that compiles for Hopper and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


kernels = {}


def bind(kernel, grid, *arguments, enable_fp_fusion=True, **constants):
    kernel.warmup(*arguments, grid=(1,), enable_fp_fusion=enable_fp_fusion, **constants)
    kernels[f"{kernel.fn.__module__}.{kernel.fn.__name__}"] = kernel


def compiled() -> dict[str, int]:
    """How many binaries of each kernel there are."""
    return {name: sum(len(cache[0]) for cache in kernel.device_caches.values()) for name, kernel in kernels.items()}


def call(T: int, H: int, W: int) -> None:
    """Every operator once, at one resolution."""
    options = LgfOptions()
    student, teacher = (torch.zeros(1, T, H, W, C, dtype=torch.bfloat16) for C in (32, 64))
    cache = torch.zeros(1, T - 1, H, W, 49, dtype=torch.float16)
    for teachers, from_logits in (([student, teacher], False), ([cache], True)):
        _, residual = lgf_kl.forward(student, teachers, [0.5] * len(teachers), None, options, from_logits, True)
        lgf_kl.backward(torch.ones(()), student, residual, None, options)
    logits = local_gram_flow.forward(student, options)
    local_gram_flow.backward(logits, student, options)
    # Frames smaller than a small tile, than a large one, and larger: a kernel for each.
    for tokens in (30 + H * W % 30, 70 + H * W % 50, 2000 + H * W):
        features = torch.zeros(1, T, tokens, 32, dtype=torch.bfloat16)
        token_relation.forward(features, features, torch.ones(T, T), 0.1, "mean", True)


driver.set_active(Hopper())
launch.run = bind
for resolution in ((3, 16, 16), (2, 16, 16), (5, 9, 19), (3, 1, 33), (2, 17, 1), (2, 1, 1)):
    call(*resolution)
    print(json.dumps(compiled()), flush=True)
