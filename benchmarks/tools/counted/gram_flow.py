"""Kernels of Local Gram Flow in half precision, with a window of 7."""

from typing import NamedTuple

import torch

from lgf_kernels.gram_flow import triton_configs

from .work import HALF, Ceilings, Work

WINDOW, RADIUS = 7, 3
#: Numbers of a token in the gradient by the logits, rows padded to 8.
SLOTS = WINDOW * 8
#: Instructions of a warp of the kernels for sm_90a in bfloat16, counted in SASS by part of a kernel. CUDA C++ is from nvcc 13.0,
#: Triton's are from 3.8, on 256 channels. The forward's are rows of `cuda_instructions.py "BandForward 8"`: a chunk is copied
#: (the copies themselves aside) and multiplied; of a source, the places of the halo, squares and norms, and slots are written; the
#: rest is of the tile: its halo, the divergence (kl), and 3.5 rounds of rows stored.
ISSUED = {
    "band forward": {"copy": 7, "chunk": 83 + 152, "source": 830, "tile": 1800},  # copy: of 16 bytes for each thread
    "band backward": {"chunk": 560, "tile": 1100},
    "triton norms": {"chunk": 60, "tile": 100},
    "triton forward": {"chunk": 80, "source": 0, "tile": 3480},
    "triton backward": {"tile": 40300 // 4},
}


class Shape(NamedTuple):
    B: int
    T: int
    H: int
    W: int
    C: int
    teachers: int  # given by features; 0: two by cached logits

    def __str__(self) -> str:
        return f"{self[:5]} " + (f"{self.teachers} teachers" if self.teachers else "cached logits")

    @property
    def tokens(self) -> int:
        return self.B * self.T * self.H * self.W

    @property
    def queries(self) -> int:
        return self.B * (self.T - 1) * self.H * self.W

    @property
    def caches(self) -> int:
        return 0 if self.teachers else 2


def tiles(shape: Shape, rows: int, cols: int) -> int:
    """Return the number of tiles of a frame."""
    return -(-shape.H // rows) * -(-shape.W // cols)


def halo_tokens(shape: Shape, rows: int, cols: int) -> int:
    """Return the tokens of one frame that its tiles' halos hold together; outside the frame nothing is read."""

    def reached(size: int, tile: int) -> int:
        starts = range(0, size, tile)
        return sum(min(size, start + tile + RADIUS) - max(0, start - RADIUS) for start in starts)

    return reached(shape.H, rows) * reached(shape.W, cols)


# ---- CUDA C++: the banded tile (csrc/cuda/gram_flow/band.h) ----------------------------------------------------------------

COLS, HALO_COLS, BAND, CHUNK, HELD = 16, 24, 128, 32, 256
#: Products for the norms, like keys of a band: of the tile's tokens with themselves, and of those of some rows of the band.
SQUARES = {4: 16 + 4 * 16, 8: 16 + 2 * 16, 16: 16 + 2 * 16}


def band_forward(shape: Shape, rows: int = 8) -> Work:
    pairs, tokens, halo = shape.B * (shape.T - 1), rows * COLS, (rows + 6) * HALO_COLS
    sources, chunks = shape.teachers + 1, -(-shape.C // CHUNK)
    blocks = pairs * tiles(shape, rows, COLS)
    staged = (halo + tokens) * CHUNK * HALF
    operands = tokens // 16 * 2 * 9 * 512  # a warp's loads of matrices, 512 bytes each
    read = shape.caches * shape.queries * WINDOW**2 * HALF
    written = shape.queries * (SLOTS * HALF + 4) + shape.tokens * 4
    per_source = pairs * (halo_tokens(shape, rows, COLS) + shape.H * shape.W) * shape.C * HALF
    part, copies = ISSUED["band forward"], (halo + tokens) * CHUNK // 8 / (32 * rows)
    of_warp = sources * (chunks * (part["chunk"] + copies * part["copy"]) + part["source"]) + part["tile"]
    return Work(
        f"CUDA forward {rows}x{COLS}",
        blocks,
        {4: 3, 8: 2, 16: 1}[rows],
        mma=blocks * tokens * (BAND + SQUARES[rows]) * chunks * CHUNK * sources,
        l2=sources * per_source + read,
        shared=blocks * sources * chunks * (staged + operands),
        memory=sources * shape.tokens * shape.C * HALF + read + written,
        instructions=int(blocks * rows * of_warp),
        waits=1 if rows < 16 else 1 + sources,  # a norm and a barrier a source, which no other block hides
    )


def band_backward(shape: Shape, rows: int = 8, passes: int | None = None) -> Work:
    """Count the backward kernel. `passes`: how often the products are made; the kernel holds the sums of 256 channels."""
    tokens, halo, chunks = rows * COLS, (rows + 6) * HALO_COLS, -(-shape.C // CHUNK)
    blocks = shape.B * shape.T * tiles(shape, rows, COLS)
    passes = passes or (2 if shape.C > HELD else 1)
    reached, windows = halo_tokens(shape, rows, COLS), SLOTS * HALF
    pairs = shape.B * (shape.T - 1)
    per_pass = 2 * pairs * reached * shape.C * HALF + shape.tokens * shape.C * HALF
    staged = 2 * halo * CHUNK * HALF + 4 * tokens * CHUNK * HALF  # own features there and back, the gradient as well
    operands, part = 2 * tokens // 16 * 2 * 8 * 512, ISSUED["band backward"]
    return Work(
        f"CUDA backward {rows}x{COLS}, products {'once' if passes == 1 else 'twice'}",
        blocks,
        (8 if passes == 1 or shape.C > HELD else 16) // rows,
        mma=2 * pairs * tiles(shape, rows, COLS) * tokens * BAND * chunks * CHUNK * passes,
        l2=passes * per_pass + pairs * (reached + shape.H * shape.W) * windows,
        shared=blocks * (passes * chunks * (staged + operands) + 2 * (halo + tokens) * windows),
        memory=2 * shape.tokens * shape.C * HALF + shape.queries * windows,
        instructions=blocks * rows * (passes * chunks * part["chunk"] + part["tile"]),
        waits=3,  # the windows of either side, the last features
    )


def cuda(shape: Shape, gpu: Ceilings) -> list[Work]:
    """Count with the height of tiles that counts less, as the launcher chooses it."""
    return [
        min((kernel(shape, rows) for rows in (4, 8)), key=lambda work: work.estimate(gpu)[0])
        for kernel in (band_forward, band_backward)
    ]


# ---- Triton: dense tiles (lgf_kernels/gram_flow/triton_configs.py) -----------------------------------------------------


def triton_norms(shape: Shape) -> Work:
    read = (shape.teachers + 1) * shape.tokens * shape.C * HALF
    blocks, part = (shape.teachers + 1) * -(-shape.tokens // 32), ISSUED["triton norms"]
    instructions = blocks * 4 * (-(-shape.C // 64) * part["chunk"] + part["tile"])
    return Work("Triton norms", blocks, 8, l2=read, memory=read, instructions=instructions)


def triton_forward(shape: Shape) -> Work:
    rows, cols, block, warps, _ = triton_configs.forward(WINDOW, shape.C, shape.teachers, torch.bfloat16, 90)[0]
    pairs, sources = shape.B * (shape.T - 1), shape.teachers + 1
    blocks, tokens, halo = pairs * tiles(shape, rows, cols), rows * cols, 16 * 16
    channels = -(-shape.C // block) * block
    read = shape.caches * shape.queries * WINDOW**2 * HALF
    written = shape.queries * (SLOTS * HALF + 4)
    per_source = pairs * (halo_tokens(shape, rows, cols) + shape.H * shape.W) * shape.C * HALF
    # Two gathers and what lies between pass the dense products through shared memory: one round trip at least.
    gathered, part = 2 * tokens * halo * 4, ISSUED["triton forward"]
    return Work(
        f"Triton forward {rows}x{cols}",
        blocks,
        1 if warps == 8 else 2,
        wgmma=blocks * tokens * halo * channels * sources,
        l2=sources * per_source + read,
        shared=blocks * sources * (2 * (tokens + halo) * channels * HALF + gathered),
        memory=sources * shape.tokens * shape.C * HALF + read + written,
        instructions=blocks * warps * (sources * channels // block * part["chunk"] + part["tile"]),
        waits=1 + sources,
    )


def triton_backward(shape: Shape) -> Work:
    rows, cols, _, block, _, _ = triton_configs.backward(WINDOW, shape.C, torch.bfloat16, 90)[0]
    pairs, tokens, halo = shape.B * (shape.T - 1), rows * cols, (rows + 6) * 16
    blocks, chunks = shape.B * shape.T * tiles(shape, rows, cols), -(-shape.C // block)
    steps = chunks * (2 if chunks > 1 else 1)
    passes, reached = steps // chunks, halo_tokens(shape, rows, cols)
    per_pass = 2 * pairs * reached * shape.C * HALF + shape.tokens * shape.C * HALF
    return Work(
        f"Triton backward {rows}x{cols}, products {'once' if passes == 1 else 'twice'}",
        blocks,
        1,
        wgmma=blocks * tokens * halo * 2 * block * steps,
        l2=passes * per_pass + steps * pairs * (reached + shape.H * shape.W) * SLOTS * HALF,
        shared=blocks * steps * 2 * 2 * halo * (block + tokens) * HALF,
        memory=2 * shape.tokens * shape.C * HALF + shape.queries * SLOTS * HALF,
        instructions=blocks * 4 * ISSUED["triton backward"]["tile"] * chunks * block // 256,
        waits=1 + 2 * steps,  # coefficients are gathered anew for each block of channels
    )


def triton(shape: Shape, gpu: Ceilings) -> list[Work]:
    return [triton_norms(shape), triton_forward(shape), triton_backward(shape)]


# ---- considered, and not implemented ----------------------------------------------------------------------------------


def wgmma_forward(shape: Shape, cluster: int) -> Work:
    """Count a forward of two 8x8 halves of an 8x16 tile by wgmma, 64 queries x 224 keys each.

    `cluster` tiles, one above the other, share the common part of their halos by TMA multicast.
    """
    rows = 8 * cluster
    base = band_forward(shape)
    tokens, halo, chunks = 8 * COLS, 14 * HALO_COLS, -(-shape.C // CHUNK)
    sources, pairs = shape.teachers + 1, shape.B * (shape.T - 1)
    per_source = pairs * (halo_tokens(shape, rows, COLS) + shape.H * shape.W) * shape.C * HALF
    read = shape.caches * shape.queries * WINDOW**2 * HALF
    return base._replace(
        kernel="not made: wgmma" + (f", TMA multicast to {cluster}" if cluster > 1 else ""),
        mma=0,
        wgmma=base.blocks * tokens * 224 * chunks * CHUNK * sources,
        l2=sources * per_source + read,
        shared=base.blocks * sources * chunks * CHUNK * HALF * (halo + tokens + 2 * (224 + 64)),
        instructions=base.blocks
        * 8
        * 3500,  # no copies, addresses or squares by threads, and masks made once (docs/gpu-next.md)
    )


def considered(shape: Shape, gpu: Ceilings) -> list[Work]:
    return [
        band_forward(shape, 16)._replace(kernel="A100 alone: CUDA forward 16x16"),
        wgmma_forward(shape, 1),
        wgmma_forward(shape, 2),
        band_backward(shape, passes=2)._replace(kernel="not made: CUDA backward, products twice"),
    ]


SHAPES = [Shape(*size, teachers) for size in ((1, 49, 64, 64, 256), (1, 13, 30, 45, 256)) for teachers in (2, 0)]
KERNELS = (cuda, triton)
#: Not implemented, or not for every GPU.
CONSIDERED = (considered,)
