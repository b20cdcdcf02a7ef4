"""Count the work of the kernels in half precision, Triton's and CUDA C++'s, and say how long a GPU of given ceilings would
need at least: Local Gram Flow with a window of 7, and token relations whose pairs of frames all have a weight. Nothing
runs; a measurement beats every number here.

  python benchmarks/tools/kernel_counts.py                                  shapes of both, from features and from cached logits
  python benchmarks/tools/kernel_counts.py --shape 1 49 64 64 256 --teachers 2
  python benchmarks/tools/kernel_counts.py --relation 1 24 150 768 768      videos, frames, tokens, channels, those of the teacher
  python benchmarks/tools/kernel_counts.py --l2 5.5 --json                  other ceilings, one JSON object a line

Counted for each kernel: multiply-adds of the tensor cores (what the tiles multiply, wanted or not), bytes from L2 to the
SMs, bytes that pass through shared memory (features and windows staged, and operands read), bytes of device memory,
instructions and blocks. An estimate is the largest of

  tensor        multiply-adds at the dense rate, or at the share of it that mma.sync reaches on Hopper
  L2            all bytes at the common rate, or those of the busiest SM at what one SM takes
  shared        bytes of the busiest SM, at 128 bytes a clock
  memory        all bytes at the copy rate
  instructions  those of the busiest SM, at one a clock for each of its four schedulers: real code issues fewer

and a round of waits for memory for each round of blocks where an SM holds one block, so that nothing hides them. Not
counted: launches and the host. Instructions are those of the compiled loops (ISSUED) times how often they run, accurate
to some ten percent; those of Triton's kernels of token relations are not counted.

Ceilings: copy and dense rates were measured on an H200; that of L2 is an assumption, and so is the share of mma.sync.
"""

import argparse
import json
import math
import sys
from typing import NamedTuple

import torch

from lgf_kernels.gram_flow import triton_configs as flow_configs
from lgf_kernels.token_relation import panels
from lgf_kernels.token_relation import triton_configs as relation_configs

WINDOW, RADIUS, HALF = 7, 3, 2
#: Numbers of a token in the gradient by the logits, rows padded to 8.
SLOTS = WINDOW * 8


#: Instructions of a warp of the kernels for sm_90a in bfloat16, counted in SASS by part of a kernel. CUDA C++ is from nvcc 13.0,
#: Triton's are from 3.8, on 256 channels.
ISSUED = {
    "band forward": {"copy": 19, "chunk": 100 + 245, "source": 1130, "tile": 5800},  # copy: of 16 bytes for each thread
    "band backward": {"chunk": 670, "tile": 1100},
    "triton norms": {"chunk": 60, "tile": 100},
    "triton forward": {"chunk": 80, "source": 0, "tile": 3480},
    "triton backward": {"tile": 40300 // 4},
    "distances": {"chunk": 290, "tile": 2100},
    "products": {"chunk": 585, "tile": 900},
    "norms": {"chunk": 60, "tile": 100},
}
#: Schedulers of an SM, each of which issues an instruction a clock.
SCHEDULERS = 4


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


class Ceilings(NamedTuple):
    """What a GPU gives, in units a second."""

    sms: int
    tensor: float
    mma_share: float
    l2: float
    sm_from_l2: float
    shared: float  # of one SM
    issue: float  # instructions of one SM
    memory: float
    wait: float  # seconds until a load from memory arrives


class Work(NamedTuple):
    """What one launch does."""

    kernel: str
    blocks: int
    blocks_per_sm: int
    mma: int = 0  # multiply-adds by mma.sync
    wgmma: int = 0  # and by wgmma
    l2: int = 0
    shared: int = 0
    memory: int = 0
    instructions: int = 0  # of all warps
    waits: int = 0  # of a block, one after the other, before its pipeline is full and after it has run dry

    def seconds(self, gpu: Ceilings) -> dict[str, float]:
        busiest = math.ceil(self.blocks / gpu.sms) / self.blocks  # the share of the SM that has most to do
        rounds = math.ceil(self.blocks / gpu.sms)
        return {
            "tensor": (self.mma / gpu.mma_share + self.wgmma) * 2 * max(1 / gpu.sms, busiest) * gpu.sms / gpu.tensor,
            "L2": max(self.l2 / gpu.l2, self.l2 * busiest / gpu.sm_from_l2),
            "shared": self.shared * busiest / gpu.shared,
            "memory": self.memory / gpu.memory,
            "instructions": self.instructions * busiest / gpu.issue,
            "exposed": self.waits * gpu.wait * (rounds if self.blocks_per_sm == 1 else 1),
        }

    def estimate(self, gpu: Ceilings) -> tuple[float, str]:
        """Seconds, and what sets them."""
        seconds = self.seconds(gpu)
        exposed = seconds.pop("exposed")
        limit = max(seconds, key=seconds.get)
        return seconds[limit] + exposed, limit


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
        mma=blocks * tokens * BAND * chunks * CHUNK * sources,
        l2=sources * per_source + read,
        shared=blocks * sources * chunks * (staged + operands),
        memory=sources * shape.tokens * shape.C * HALF + read + written,
        instructions=int(blocks * rows * of_warp),
        waits=1 if rows < 16 else 1 + sources,  # a norm and a barrier a source, with nobody to take over
    )


def band_backward(shape: Shape, rows: int = 8, passes: int | None = None) -> Work:
    """`passes`: how often the products are made; the kernel holds the sums of 256 channels."""
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
        mma=blocks * tokens * BAND * 2 * chunks * CHUNK * passes,
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
    rows, cols, block, warps, _ = flow_configs.forward(WINDOW, shape.C, shape.teachers, torch.bfloat16, 90)[0]
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
    rows, cols, _, block, _, _ = flow_configs.backward(WINDOW, shape.C, torch.bfloat16, 90)[0]
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


# ---- what was considered and is not there ----------------------------------------------------------------------------


def wgmma_forward(shape: Shape, cluster: int) -> Work:
    """Two 8x8 halves of an 8x16 tile by wgmma, 64 queries x 224 keys each, `cluster` tiles one above the other sharing
    what their halos have in common by TMA multicast."""
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


# ---- token relations (lgf_kernels/token_relation/panels.py), in one panel ------------------------------------------


#: VideoREPA's and MoAlign's, on 10 x 15 tokens and on all.
RELATIONS = [(1, 24, 150, 768, 768), (1, 24, 150, 64, 64), (1, 24, 1350, 768, 768), (1, 24, 1350, 64, 64)]


class Relation(NamedTuple):
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


def relation(name: str, shape: Relation, gpu: Ceilings, tile: int, chunk: int, depth: int, width: int) -> list[Work]:
    """`chunk`: channels of distances at a time; `depth` and `width`: tokens and channels of products at a time."""
    B, _, _, C, D = shape
    tiles, features = -(-shape.tokens // tile), B * shape.tokens * C * HALF
    both = B * shape.tokens * (C + D) * HALF
    counted = name == "CUDA"  # instructions, of Triton's kernels not
    pairs, steps = B * tiles * (tiles + 1) // 2, -(-C // chunk) + -(-D // chunk)
    coefficients = pairs * tile * tile * HALF
    distances = Work(
        f"{name} distances",  # a block is a pair of tiles, whoever takes it
        pairs,
        1,
        wgmma=pairs * steps * tile * tile * chunk,
        l2=(tiles + 1) * both,
        shared=pairs * steps * (2 * tile * chunk * HALF + wgmma_operands(tile, tile, chunk)),
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


def relation_cuda(shape: Relation, gpu: Ceilings) -> list[Work]:
    return relation("CUDA", shape, gpu, 128, 64, 64, 256 if shape.C > 128 else 128)


def relation_triton(shape: Relation, gpu: Ceilings) -> list[Work]:
    tile = relation_configs.relation_tile(torch.bfloat16, shape.N)
    distances = relation_configs.distances(max(shape.C, shape.teacher), torch.bfloat16, 90)[0]
    products = relation_configs.products(shape.C, torch.bfloat16, tile, 90)[0]
    return relation("Triton", shape, gpu, tile, distances.BLOCK_C, products.BLOCK_K, products.BLOCK_C)


def row(shape: Shape | Relation, work: Work, gpu: Ceilings) -> dict:
    estimate, limit = work.estimate(gpu)
    resources = {name: round(seconds * 1e6, 1) for name, seconds in work.seconds(gpu).items()}
    return {
        "shape": str(shape),
        **work._asdict(),
        "microseconds": resources,
        "estimate": estimate * 1e6,
        "limit": limit,
    }


def as_text(row: dict) -> str:
    us = row["microseconds"]
    return (
        f"  {row['kernel']:<42}{row['blocks']:6} blocks {row['blocks_per_sm']} an SM"
        f"{(row['mma'] + row['wgmma']) / 1e9:8.1f} G MAC{row['l2'] / 1e6:8.0f} MB L2{row['shared'] / 1e6:8.0f} MB shared"
        f"{row['memory'] / 1e6:7.0f} MB memory{row['instructions'] / 1e6:7.0f} M instructions   us: "
        + " ".join(f"{name} {us[name]:.0f}" for name in us)
        + f" -> {row['estimate']:.0f}, {row['limit']}"
    )


def ceilings(sms, clock, tensor, mma_share, l2, sm_from_l2, shared, memory, wait) -> Ceilings:
    """Return the ceilings from the units of the command line."""
    per_clock = clock * 1e9
    of_sm = (sm_from_l2 * per_clock, shared * per_clock, SCHEDULERS * per_clock)
    return Ceilings(sms, tensor * 1e12, mma_share, l2 * 1e12, *of_sm, memory * 1e12, wait * 1e-6)


DEFAULTS = {
    "sms": (132, "SMs"),
    "clock": (1.755, "GHz"),
    "tensor": (790.0, "TFLOP/s, dense"),
    "mma-share": (0.62, "of the dense rate, that mma.sync reaches"),
    "l2": (6.0, "TB/s from L2 to all SMs"),
    "sm-from-l2": (64.0, "bytes a clock that one SM takes at most"),
    "shared": (128.0, "bytes a clock of an SM's shared memory"),
    "memory": (4.3, "TB/s of a copy"),
    "wait": (0.6, "microseconds until a load from memory arrives"),
}
H200 = ceilings(*(value for value, _ in DEFAULTS.values()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=5, metavar=tuple("BTHWC"), help="this shape alone")
    parser.add_argument("--relation", type=int, nargs=5, metavar=("B", "F", "N", "C", "D"), help="this one alone")
    parser.add_argument("--teachers", type=int, nargs="+", default=[2, 0], help="0: two by cached logits")
    for name, (value, unit) in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{unit} (default: {value})")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    return parser.parse_args()


def main() -> int:
    given = parse_arguments()
    gpu = ceilings(*(getattr(given, name.replace("-", "_")) for name in DEFAULTS))
    alone = given.shape or given.relation
    sizes = [given.shape] if given.shape else [] if alone else [(1, 49, 64, 64, 256), (1, 13, 30, 45, 256)]
    relations = [given.relation] if given.relation else [] if alone else RELATIONS
    todo = [(Shape(*size, teachers), (cuda, triton, considered)) for size in sizes for teachers in given.teachers]
    todo += [(Relation(*size), (relation_cuda, relation_triton)) for size in relations]
    for shape, groups in todo:
        if not given.json:
            print(shape)
        for group in groups:
            rows = [row(shape, work, gpu) for work in group(shape, gpu)]
            for each in rows:
                print(json.dumps(each) if given.json else as_text(each))
            if not given.json and group is not considered:
                print(f"    {len(rows)} kernels, {sum(each['estimate'] for each in rows):.0f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
