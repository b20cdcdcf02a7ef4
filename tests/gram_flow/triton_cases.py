"""The Triton kernels of Local Gram Flow for tests of all families: cases for the model of a GPU, tables, calls."""

import itertools
from collections.abc import Iterator

import torch
from models.ptx.case import Case

import lgf_kernels as lgf
from lgf_kernels.gram_flow import triton_configs as configs
from lgf_kernels.gram_flow.options import LgfOptions


def cached_logits(teachers):
    return [[lgf.local_gram_flow(teacher, backend="reference").half() for teacher in teachers]], {}


BOTH, DOT, PLAIN = {"direction": "both"}, {"similarity": "dot"}, {"boundary": "zero", "divergence": "l2"}
CASES = [
    Case("lgf_kl_loss", "float64", (1, 3, 9, 11, 20), (24,), BOTH),
    Case("lgf_kl_loss", "bfloat16", (1, 2, 3, 17, 40), (24, 7), DOT | PLAIN | {"window": 3, "reduction": "none"}),
    Case("lgf_kl_loss", "float32", (2, 2, 5, 6, 3), (2,), {"window": 5, "boundary": "zero", "direction": "backward"}),
    Case("lgf_kl_loss", "float16", (1, 2, 9, 3, 16), (16, 8, 12), {"window": 15}),
    Case("lgf_kl_loss_from_logits", "bfloat16", (1, 3, 9, 9, 24), (16,), {}, arguments=cached_logits),
    Case("local_gram_flow", "bfloat16", (1, 3, 9, 9, 72), (), {}),
]
MORE = [
    *(Case("lgf_kl_loss", dtype, (1, 3, 9, 11, 20), (24,), BOTH) for dtype in ("float32", "bfloat16", "float16")),
    Case("lgf_kl_loss", "float32", (1, 2, 4, 5, 8), (8,), {"divergence": "l2"}, gradient=False),
]
#: What continuous integration runs compiled for Hopper: most of the time is the compiler's, so that kernels are used again.
ON_HOPPER = [
    Case("lgf_kl_loss", "bfloat16", (*shape, 72), (24,), {})
    for shape in ((1, 3, 9, 11), (2, 2, 5, 17), (1, 2, 1, 33), (1, 2, 20, 3))
]
BUGS = {}


def rows_of_tables() -> Iterator[Case]:
    """Yield a call for each row of the tables of configurations, with more channels than its block."""
    dtypes = {2: "bfloat16", 4: "float32", 8: "float64"}
    for table in ("FORWARD", "FORWARD_ONE_GRAM", "BACKWARD", "BACKWARD_TWO_PASSES"):
        for key, rows in getattr(configs, table).items():
            loss, teachers = ("local_gram_flow", ()) if "ONE" in table else ("lgf_kl_loss", (24,))
            dtype = dtypes[key[1] if isinstance(key, tuple) else key]
            for row in rows:
                call = Case(loss, dtype, (1, 2, 9, 9, row.BLOCK_C + 8), teachers, {})
                yield call._replace(row=row)


def quicken() -> None:
    """Make the blocks of the tables few and large, because the interpreter's time goes with programs and steps."""
    configs.FORWARD.update({size: [configs.Forward(8, 8, 256, 8, 2)] for size in configs.FORWARD})
    configs.BACKWARD.update({size: [configs.Backward(8, 8, 16, 512, 8, 2)] for size in configs.BACKWARD})


def launch_every_kernel(T: int, H: int, W: int) -> None:
    """Call every launcher, at one resolution, with channels that 16 divides and others, and windows of every row length."""
    from lgf_kernels.gram_flow import triton_flow, triton_loss

    for dtype, C, window in itertools.product((torch.bfloat16, torch.float32), (32, 24, 17), (1, 3, 7, 15)):
        options = LgfOptions(window=window)
        student, teacher = (torch.zeros(1, T, H, W, channels, dtype=dtype) for channels in (C, 64))
        cache = torch.zeros(1, T - 1, H, W, window**2, dtype=torch.float16)
        for teachers, from_logits in (([student, teacher], False), ([cache], True)):
            _, residual = triton_loss.forward(
                student, teachers, [0.5] * len(teachers), None, options, from_logits, True
            )
            triton_loss.backward(torch.ones(()), student, residual, None, options)
        logits = triton_flow.forward(student, options)
        triton_flow.backward(logits, student, options)
