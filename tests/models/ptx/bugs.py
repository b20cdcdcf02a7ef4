"""Bugs of Triton kernels that the model must notice."""

from collections.abc import Callable
from unittest import mock

import torch
import triton
import triton.language as tl
from support.numerics import features, relative_error, value_and_gradient

import lgf_kernels as lgf

from . import triton_launcher as launcher
from .grid import prepared
from .mistakes import Mistake


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


def edited(right: str, wrong: str, tokens: int = 128, channels: int = 40) -> list[float]:
    """Run kernels whose compiled code is changed, and return the relative errors of the value and the gradient."""
    edit = Mistake(right, wrong)
    student, teacher = (features(1, 1, tokens, C, dtype=torch.bfloat16) for C in (channels, 24))
    weight = torch.ones(1, 1)
    with mock.patch.object(launcher, "prepared", lambda ptx: prepared(edit(ptx))):
        ours = value_and_gradient(lgf.token_relation_loss, student, teacher, pair_weight=weight, backend="triton")
    truth = value_and_gradient(
        lgf.token_relation_loss, student.double(), teacher.double(), pair_weight=weight, backend="reference"
    )
    assert edit.changes, f"no kernel has {right!r}"
    return [relative_error(our, true) for our, true in zip(ours, truth, strict=True)]


BUGS: dict[str, Callable] = {
    "past the end": past_the_end,
    "between the elements": between_the_elements,
    "not aligned": not_aligned,
    "masked without other": masked_without_other,
    "no barriers": lambda: edited(r"bar\.sync", "// bar.sync"),
    "waits too little": lambda: edited(r"cp\.async\.wait_group \t0", "cp.async.wait_group \t1"),
}

#: 1 << 62, rows of 128 bytes that are swizzled.
SWIZZLE_128 = r"461168629330\d{7}"
#: On Hopper: what is wrong in the code, the right and the wrong code, and what the fault says; none where results are wrong.
ON_HOPPER: dict[str, tuple[str, str, str | None]] = {
    "no barriers": (r"bar\.sync", "// bar.sync", "race"),
    "no fence": (r"wgmma\.fence", "// wgmma.fence", "no fence (wgmma.fence)"),
    "no commit": (r"wgmma\.commit_group", "// wgmma.commit_group", "not committed"),
    "no wait": (r"wgmma\.wait_group", "// wgmma.wait_group", "have not waited for"),
    "no fence between proxies": (r"fence\.proxy\.async", "// fence.proxy.async", "no fence (fence.proxy.async)"),
    "another swizzle": (SWIZZLE_128, lambda number: str(int(number[0]) ^ 3 << 62), None),
}
MORE_ON_HOPPER: dict[str, tuple[str, str, str | None]] = {
    "waits for copies too little": (r"cp\.async\.wait_group \t0", "cp.async.wait_group \t1", "copy is under way"),
    "waits for products too little": (
        r"wgmma\.wait_group\.sync\.aligned 0",
        "wgmma.wait_group.sync.aligned 1",
        "product",
    ),
    "another stride": (SWIZZLE_128, lambda number: str(int(number[0]) ^ 96 << 32), None),
    "another base": (SWIZZLE_128, lambda number: str(int(number[0]) | 1 << 49), "does not know `descriptor"),
    "a is transposed": (r", 1, 1, 0, ([01]);", r", 1, 1, 1, \1;", None),
    "a is not transposed": (r", 1, 1, 1, 1;", ", 1, 1, 0, 1;", None),
    "b is transposed": (r", 1, 1, 0, 0;", ", 1, 1, 0, 1;", None),
    "b is not transposed": (r", 1, 1, ([01]), 1;", r", 1, 1, \1, 0;", None),
    "pieces are not exchanged": (r"xor\.b32", "or.b32", None),
}
