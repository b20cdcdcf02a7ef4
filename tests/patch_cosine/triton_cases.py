"""The Triton kernel of patch cosine for tests of all families: cases for the model of a GPU, tables, calls."""

import functools
import itertools
from collections.abc import Iterator

import torch
from models.ptx.case import Case

import lgf_kernels as lgf
from lgf_kernels.patch_cosine import triton_configs as configs


def tuple_of_teachers(frames, teachers):
    """Make the arguments of a loss of all teachers together, whose frames are mixed or not."""
    weight = {"frame_weight": lgf.crepa_frame_weight(teachers[0].shape[1])} if frames else {}
    return [teachers], weight


def case(dtype, shape, teachers, options, frames=False, **more) -> Case:
    make = functools.partial(tuple_of_teachers, frames)
    return Case("patch_cosine_loss", dtype, (*shape, sum(teachers)), teachers, options, arguments=make, **more)


CASES = [
    *(case(dtype, (2, 3, 7), (20, 5), {}) for dtype in ("float32", "float16", "float64")),
    case("bfloat16", (1, 4, 3, 5), (272, 16), {"reduction": "none"}, frames=True),
]
MORE = [
    case("bfloat16", (2, 3, 7), (20, 5), {}),
    case("float32", (2, 3, 3, 5), (48,), {"teacher_weights": (2.0,)}, frames=True),
]
#: What continuous integration runs compiled for Hopper: most of the time is the compiler's, so that kernels are used again.
ON_HOPPER = [case("bfloat16", shape, (272, 16), {}) for shape in ((1, 3, 5), (7,))]
BUGS = {}


def rows_of_tables() -> Iterator[Case]:
    """Yield a call for each row of the table of configurations, with more channels than its block and with fewer."""
    dtypes = {2: "bfloat16", 4: "float32", 8: "float64"}
    for size, rows in configs.TOKENS.items():
        for row, frames in itertools.product(rows, (False, True)):
            channels = (row.BLOCK_C + 12, row.BLOCK_C - 4)
            yield case(dtypes[size], (1, 3, 2 * row.ROWS + 1), channels, {}, frames, row=row)


def quicken() -> None:
    """Make the blocks of the table few and large, because the interpreter's time goes with programs and steps."""
    configs.TOKENS.update({size: [configs.Tokens(64, 256, 4, 1)] for size in configs.TOKENS})


def launch_every_kernel(T: int, H: int, W: int) -> None:
    """Call every launcher, at one resolution, with channels that 16 divides and others, and other frames of the teachers."""
    from lgf_kernels.patch_cosine import triton_kernels

    for C, frames, needs_grad in itertools.product((32, 24, 17), (False, True), (True, False)):
        student = torch.zeros(2, T, H, W, C + 16, dtype=torch.bfloat16)
        K = 2 * T - 1 if frames else T
        teachers = [torch.zeros(2, K, H, W, c, dtype=torch.bfloat16) for c in (C, 16)]
        weight = torch.ones(T, K) if frames else None
        triton_kernels.forward(student, teachers, [0.6, 0.8], weight, needs_grad)
