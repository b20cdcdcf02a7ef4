"""Kernels of token relations in half precision, in one panel, with a weight for every pair of frames."""

from typing import NamedTuple

import torch

from lgf_kernels.token_relation import panels, triton_configs

from .work import HALF, Ceilings, Work

#: Instructions of a warp of the CUDA C++ kernels for sm_90a in bfloat16, counted in SASS by part of a kernel, from nvcc 13.0.
ISSUED = {
    "distances": {"chunk": 220, "tile": 1520},
    "products": {"chunk": 435, "tile": 900},
    "norms": {"chunk": 60, "tile": 100},
}
#: Hopper's kernel of distances keeps so many chunks of a row, and has so many of columns on their way.
KEPT, COLUMN_STAGES = 8, 4
#: Rows of tiles side by side where no row is kept.
GROUP = 4


class Shape(NamedTuple):
    B: int
    frames: int
    N: int
    C: int
    teacher: int  # its channels

    def __str__(self) -> str:
        return f"{self[:4]} teacher of {self.teacher} channels"

    @property
    def tokens(self) -> int:
        return self.frames * self.N


def wgmma_operands(rows: int, columns: int, depth: int) -> int:
    """Return the bytes of shared memory that rows x columns products read: 64 x 128 at a time."""
    return rows // 64 * (columns + -(-columns // 128) * 64) * depth * HALF


def rows_copied(tiles: int, videos: int, chunks: int, sms: int) -> list[int]:
    """Return the rows of tiles that the CUDA kernel of distances copies, in the order of csrc/cuda/token_relation/distances.h."""
    couples, width = (tiles + 1) // 2, tiles + 1
    of_a_video = -(-couples // GROUP) * GROUP * width
    blocks = min(of_a_video * videos, sms)
    of_a_block, stretch = of_a_video * videos // blocks, 0
    while COLUMN_STAGES <= chunks <= KEPT and stretch < 4 and of_a_block >> stretch >= 8:
        stretch += 1
    if not stretch:
        return [row for _ in range(videos) for row in range(tiles) for _ in range(row, tiles)]
    copied = []
    for block in range(blocks):
        kept, stretches = None, range(block, (of_a_video * videos >> stretch) + 1, blocks)
        for place in (place for first in stretches for place in range(first << stretch, (first + 1) << stretch)):
            video, (couple, step) = place // of_a_video, divmod(place % of_a_video, width)
            top, bottom = couple, tiles - 1 - couple
            upper = step < tiles - top
            if video >= videos or not (top < bottom or (top == bottom and upper)):
                continue
            row = video, top if upper else bottom
            if row != kept:
                copied.append(row[1])
            kept = row
    return copied


def kernels(name: str, shape: Shape, gpu: Ceilings, tile: int, chunk: int, depth: int, width: int) -> list[Work]:
    """Count the kernels: `chunk` channels of distances at a time, `depth` tokens and `width` channels of products."""
    B, _, _, C, D = shape
    tiles, features = -(-shape.tokens // tile), B * shape.tokens * C * HALF
    both = B * shape.tokens * (C + D) * HALF
    counted = name == "CUDA"  # instructions, of Triton's kernels not
    pairs, steps = B * tiles * (tiles + 1) // 2, -(-C // chunk) + -(-D // chunk)
    coefficients = pairs * tile * tile * HALF
    copied = rows_copied(tiles, B, counted * steps, gpu.sms)  # Triton keeps none
    tokens_of = [tile] * (tiles - 1) + [shape.tokens - (tiles - 1) * tile]
    by_columns = B * sum((column + 1) * tokens for column, tokens in enumerate(tokens_of))
    read = (sum(tokens_of[row] for row in copied) + by_columns) * (C + D) * HALF
    distances = Work(
        f"{name} distances",  # counted as one block for each pair of tiles
        pairs,
        1,
        wgmma=pairs * steps * tile * tile * chunk,
        l2=read,
        shared=steps * ((pairs + len(copied)) * tile * chunk * HALF + pairs * wgmma_operands(tile, tile, chunk)),
        memory=both + coefficients,
        instructions=counted * pairs * 8 * (steps * ISSUED["distances"]["chunk"] + ISSUED["distances"]["tile"]),
        waits=0 if name == "CUDA" else 2,  # with the features of the next pair on their way there are none
    )
    across, steps = -(-C // width), B * tiles * tiles * (tile // depth)  # for each block of channels
    programs = B * tiles * across
    splits = max(1, min(gpu.sms // programs, panels.MAX_SPLITS, tiles))
    parts = 2 * features * splits  # in float32
    products = Work(
        f"{name} products",
        programs * splits,
        1,
        wgmma=steps * across * tile * depth * width,
        l2=steps * across * tile * depth * HALF + tiles * features,
        shared=steps * across * ((tile + width) * depth * HALF + wgmma_operands(tile, width, depth)),
        memory=coefficients + features + parts,
        instructions=counted
        * 8
        * (steps * across * ISSUED["products"]["chunk"] + programs * splits * ISSUED["products"]["tile"]),
        waits=1,
    )
    tokens = 8 if name == "CUDA" else 32  # of a block; in Triton's projection it depends on the channels
    blocks = -(-B * shape.tokens // tokens)
    part, chunks = ISSUED["norms"], -(-C // 256) + -(-D // 256)
    issued = B * shape.tokens * (chunks * part["chunk"] + 2 * part["tile"])  # a warp for each token
    norms = Work(f"{name} norms", 2 * blocks, 8, l2=both, memory=both, instructions=issued)
    projection = Work(
        f"{name} projection", blocks, 8, l2=2 * (parts + features), memory=parts + features + 2 * features
    )
    return [norms, distances, products, projection]


def cuda(shape: Shape, gpu: Ceilings) -> list[Work]:
    return kernels("CUDA", shape, gpu, 128, 64, 64, 256 if shape.C > 128 else 128)


def triton(shape: Shape, gpu: Ceilings) -> list[Work]:
    tile = triton_configs.relation_tile(torch.bfloat16, shape.N)
    distances = triton_configs.distances(max(shape.C, shape.teacher), torch.bfloat16, 90)[0]
    products = triton_configs.products(shape.C, torch.bfloat16, tile, 90)[0]
    return kernels("Triton", shape, gpu, tile, distances.BLOCK_C, products.BLOCK_K, products.BLOCK_C)


#: VideoREPA's and MoAlign's, on 10 x 15 tokens and on all.
SHAPES = [Shape(1, 24, N, C, C) for N in (150, 1350) for C in (768, 64)]
KERNELS = (cuda, triton)
