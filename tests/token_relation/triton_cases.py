"""The Triton kernels of token relations for tests of all families: cases for the model of a GPU, tables, calls."""

import functools
import itertools
import os
from collections.abc import Iterator
from unittest import mock

import torch
from models.ptx.case import Case
from support.numerics import features, value_and_gradient

import lgf_kernels as lgf
from lgf_kernels.token_relation import triton_configs as configs
from lgf_kernels.token_relation.options import RelationOptions


def one_teacher(teachers):
    (teacher,) = teachers
    return [teacher], {"pair_weight": lgf.moalign_pair_weight(teacher.shape[1])}


relation = functools.partial(Case, "token_relation_loss", arguments=one_teacher)
CASES = [
    *(relation(dtype, (2, 3, 37, 20), (64,), {}) for dtype in ("float32", "float16", "float64")),
    relation("bfloat16", (1, 2, 150, 72), (24,), {"margin": 0.1}),
    relation("float32", (1, 2, 37, 20), (64,), {"distance": "l2", "negatives": "clamp", "similarity": "dot"}),
    relation("bfloat16", (1, 2, 37, 20), (64,), {"distance": "l2"}),
]
MORE = [relation("bfloat16", (2, 3, 37, 20), (64,), {})]
#: What continuous integration runs compiled for Hopper: most of the time is the compiler's, so that kernels are used again.
ON_HOPPER = [
    CASES[0],
    *(relation("bfloat16", (*shape, 72), (24,), {"margin": 0.1}) for shape in ((1, 2, 150), (3, 2, 37), (1, 5, 61))),
]


def gradient_of_equals(fused: str | None) -> float:
    """Return the largest gradient of equal student and teacher, where a kernel fuses products and sums that it must not."""
    from models.ptx import triton_launcher as launcher

    from lgf_kernels.core import triton_launch

    def run(kernel, *arguments, enable_fp_fusion=True, **constants):
        fusion = enable_fp_fusion or kernel.fn.__name__ == fused
        launcher.run(kernel, *arguments, enable_fp_fusion=fusion, **constants)

    with triton_launch.overridden(run=run):
        student = features(1, 2, 40, 24)
        _, gradient = value_and_gradient(
            lgf.token_relation_loss, student, student.clone(), pair_weight=torch.ones(2, 2), backend="triton"
        )
    return gradient.abs().max().item()


BUGS = {
    "nothing fused": functools.partial(gradient_of_equals, None),
    "differences fused": functools.partial(gradient_of_equals, "lgf_relation_distances"),
    "norms fused": functools.partial(gradient_of_equals, "lgf_reciprocal_norms"),
}


def rows_of_tables() -> Iterator[Case]:
    """Yield a call for each row of the tables of configurations, with more channels than its block."""
    dtypes = {2: "bfloat16", 4: "float32", 8: "float64"}
    for table in ("DISTANCES", "PRODUCTS"):
        for size, rows in getattr(configs, table).items():
            tokens = configs.RELATION_TILES[size][0] + 5
            for row in rows:
                call = relation(dtypes[size], (1, 2, tokens, row.BLOCK_C + 12), (row.BLOCK_C + 8,), {})
                yield call._replace(row=row)


def quicken() -> None:
    """Make the blocks of the tables few and large, because the interpreter's time goes with programs and steps."""
    configs.RELATION_TILES.update(dict.fromkeys(configs.RELATION_TILES, (256, 256)))
    configs.DISTANCES.update({size: [configs.Distances(256, 8, 2)] for size in configs.DISTANCES})
    configs.PRODUCTS.update({size: [configs.Products(256, 256, 8, 2)] for size in configs.PRODUCTS})


def launch_every_kernel(T: int, H: int, W: int) -> None:
    """Call every launcher, at one resolution, with frames smaller than a small tile, than a large one, and larger; with
    channels that 16 divides and others; and with several videos, one after the other in panels where these are cut."""
    from lgf_kernels.token_relation import triton_kernels

    sizes = (30 + H * W % 30, 70 + H * W % 50, 2000 + H * W)
    for tokens, C, budget in itertools.product(sizes, (32, 24, 17), ("1", "1024")):
        with mock.patch.dict(os.environ, LGF_SCRATCH_MIB=budget):
            features = torch.zeros(3 if tokens < 2000 else 1, T, tokens, C, dtype=torch.bfloat16)
            triton_kernels.forward(features, features, torch.ones(T, T), RelationOptions(0.1), True)
