"""The Triton kernels of point correspondence for tests of all families: cases for the model of a GPU, tables, calls."""

import functools
import itertools
import os
from collections.abc import Iterator
from unittest import mock

import torch
from models.ptx.case import Case
from support.points import points

from lgf_kernels.point_correspondence import triton_configs as configs


def tracks(count, on_tokens, B, T, H, W, teachers):
    """Make the arguments of a loss of so many points; there are no teachers."""
    return list(points(B, count, T, H, W, on_tokens)), {"temperature": 0.3}


def case(dtype, shape, count, options, **more) -> Case:
    # Between tokens, features in half precision are rounded before they are multiplied.
    arguments = functools.partial(tracks, count, dtype in ("bfloat16", "float16"), *shape[:4])
    return Case("point_correspondence_loss", dtype, shape, (), options, arguments=arguments, **more)


CASES = [
    *(case(dtype, (1, 2, 5, 9, 20), 37, {}) for dtype in ("float32", "float16", "float64")),
    case("bfloat16", (2, 3, 9, 17, 72), 150, {"window": 2, "reduction": "none"}),
]
MORE = [case("bfloat16", (1, 2, 5, 9, 20), 37, {})]
#: What continuous integration runs compiled for Hopper: most of the time is the compiler's, so that kernels are used again.
ON_HOPPER = [case("bfloat16", (1, 2, 5, 9, 72), 37, {}), case("bfloat16", (2, 3, 9, 11, 72), 61, {})]
BUGS = {}


def rows_of_tables() -> Iterator[Case]:
    """Yield a call for each row of the tables of configurations, with more channels than its block and with fewer."""
    dtypes = {2: "bfloat16", 4: "float32", 8: "float64"}
    for name in ("SEARCH", "SEARCH_IN_BLOCKS", "COEFFICIENTS", "WIDE_COEFFICIENTS", "PRODUCTS", "PRODUCTS_FOR_TOKENS"):
        for size, rows in getattr(configs, name).items():
            for row in rows:
                for channels in (row.BLOCK_C - 4, row.BLOCK_C + 12):
                    yield case(dtypes[size], (1, 2, 9, 16, channels), 133, {}, row=row)


def quicken() -> None:
    """Make the blocks of the tables few and large, because the interpreter's time goes with programs and steps."""
    configs.SEARCH.update({size: [configs.Search(64, 256, 256, 8, 2)] for size in configs.SEARCH})
    configs.SEARCH_IN_BLOCKS.update({size: [configs.Search(64, 256, 256, 8, 2)] for size in configs.SEARCH_IN_BLOCKS})
    configs.TILES.update(dict.fromkeys(configs.TILES, 128))
    configs.COEFFICIENTS.update({size: [configs.Coefficients(128, 256, 8, 2)] for size in configs.COEFFICIENTS})
    configs.WIDE_COEFFICIENTS.clear()
    configs.PRODUCTS_FOR_TOKENS.clear()
    configs.PRODUCTS.update({size: [configs.Products(128, 256, 8, 2)] for size in configs.PRODUCTS})


def launch_every_kernel(T: int, H: int, W: int) -> None:
    """Call every launcher, at one resolution and another number of points each time, with channels that 16 divides and
    others; with videos one after the other, and frames as many at a time as a budget holds."""
    from lgf_kernels.point_correspondence import triton_kernels

    for C, window, budget in itertools.product((32, 24, 17), (None, 2), ("1", "64")):
        with mock.patch.dict(os.environ, LGF_SCRATCH_MIB=budget):
            features, queries = torch.zeros(2, T, H, W, C, dtype=torch.bfloat16), torch.zeros(2, H * W + T, 3)
            places, state = triton_kernels.forward(features, queries, 0.05, window)
            triton_kernels.backward(places, features, queries, places, state, 0.05, window)
