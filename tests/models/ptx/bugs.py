"""Bugs of Triton kernels that the model must notice."""

from collections.abc import Callable
from unittest import mock

import torch
import triton
import triton.language as tl
from support.numerics import features, value_and_gradient

import lgf_kernels as lgf

from . import triton_launcher as launcher


@triton.jit
def doubled(x, y, n, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if MASKED:
        tl.store(y + i, 2 * tl.load(x + i, mask=i < n))
    else:
        tl.store(y + i, 2 * tl.load(x + i))


def past_the_end() -> None:
    launcher.run(doubled, (1,), torch.ones(100), torch.empty(128), 100, MASKED=False, BLOCK=128, num_warps=4)


def masked_without_other() -> float:
    """Return NaN where masked elements of a load are read, 0 if the load gave zeros, as Triton's do today."""
    y = torch.empty(128)
    launcher.run(doubled, (1,), torch.ones(100), y, 100, MASKED=True, BLOCK=128, num_warps=4)
    return y[100:].sum().item()


def between_the_elements() -> None:
    """Read a tensor with a stride that is not passed to the kernel."""
    x = torch.ones(256)[::2]
    launcher.run(doubled, (1,), x, torch.empty(128), 128, MASKED=False, BLOCK=128, num_warps=4)


def not_aligned() -> None:
    """Launch a kernel compiled for tensors aligned to 16 bytes with a tensor that is not."""
    constants = dict(MASKED=False, BLOCK=128, num_warps=1, enable_fp_fusion=True)
    compiled = doubled.warmup(torch.ones(128), torch.empty(128), 128, grid=(1,), **constants)
    with mock.patch.object(doubled, "warmup", lambda *arguments, **constants: compiled):
        launcher.run(doubled, (1,), torch.ones(129)[1:], torch.empty(128), 128, **constants)


def edited(old: str, new: str) -> None:
    """Run a kernel whose compiled code is changed."""
    prepared = launcher.prepared
    student = features(1, 1, 128, 40, dtype=torch.bfloat16)
    with mock.patch.object(launcher, "prepared", lambda ptx: prepared(ptx.replace(old, new))):
        value_and_gradient(lgf.token_relation_loss, student, student, pair_weight=torch.ones(1, 1), backend="triton")


BUGS: dict[str, Callable] = {
    "past the end": past_the_end,
    "between the elements": between_the_elements,
    "not aligned": not_aligned,
    "masked without other": masked_without_other,
    "no barriers": lambda: edited("bar.sync", "// bar.sync"),
    "waits too little": lambda: edited("cp.async.wait_group \t0", "cp.async.wait_group \t1"),
}
