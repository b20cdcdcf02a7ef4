"""Cost of losses over shards: what a process receives, and how much more it computes, by count.

python benchmarks/tools/shard_costs.py                       the table of docs/distributed.md
python benchmarks/tools/shard_costs.py --grid 13 30 45 --ranks 2 4 8 --channels 256
"""

import here  # noqa: F401  # isort: skip

import argparse
import itertools

import torch
from torch.nn.functional import max_pool2d

from lgf_kernels.distributed import Frames, Rows, Shards, Tokens
from lgf_kernels.gram_flow import triton_configs

#: Tokens of 49 frames of 480 x 720 in CogVideoX, of 81 frames of 480 x 832 in Wan2.1, of 129 frames of 720 x 1280 in HunyuanVideo.
GRIDS = {"CogVideoX": (13, 30, 45), "Wan2.1": (21, 30, 52), "HunyuanVideo": (33, 45, 80)}
KINDS = (Frames, Rows, Tokens)


def received(shards: Shards, radius: int, place_bytes: int) -> int:
    """Return the most that a process receives in the forward; in the backward others receive as much from it."""
    own, needed = (
        [each[1] - each[0] for each in ranges]
        for ranges in (
            [shards.own(rank) for rank in range(shards.ranks)],
            [shards.needed(rank, radius, "forward") for rank in range(shards.ranks)],
        )
    )
    return place_bytes * max(need - have for have, need in zip(own, needed, strict=True))


def tile_of(channels: int, window: int, element: int) -> tuple[int, int]:
    """Return the rows and columns of the tiles that Triton's forward skips or computes, from cached logits."""
    operand = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[element]
    return triton_configs.forward(window, channels, 0, operand, 90)[0][:2]


def boxes(own: torch.Tensor, height: int, width: int) -> int:
    """Return how many boxes of this size hold a query of a process's own; `own` (pairs, H, W) says which are."""
    return int(max_pool2d(own[None], (height, width), ceil_mode=True).sum())


def work(shards: Shards, radius: int, tile: tuple[int, int]) -> tuple[float, float, float]:
    """Return the most of one process over an equal share of all: of queries on the canvas, of image rows, of tiles.

    Of rows and tiles those count that hold a query of its own, in the forward.
    """
    T, H, W = shards.grid
    size = (1, 1), (1, W), tile
    most, whole = [0, 0, 0], [boxes(torch.ones(T - 1, H, W), *box) for box in size]
    for rank in range(shards.ranks):
        queries = shards.queries(rank, "forward")
        if 0 in queries:
            continue
        own = shards.on_canvas(torch.ones(1, *queries, 1), rank, radius, "forward")[0, ..., 0]
        found = own.numel(), boxes(own, 1, W), boxes(own, *tile)
        most = [max(pair) for pair in zip(most, found, strict=True)]
    return tuple(part * shards.ranks / all_ for part, all_ in zip(most, whole, strict=True))


def rows(
    grids: dict[str, tuple[int, int, int]], ranks: list[int], channels: int, window: int, element: int
) -> list[list[str]]:
    """Return a row for each grid, kind and number of processes."""
    table = []
    for (name, grid), kind, count in itertools.product(grids.items(), KINDS, ranks):
        T, H, W = grid
        shards = kind.even(grid, count)
        places = {Frames: H * W, Rows: T * W, Tokens: 1}[kind]
        megabytes = received(shards, window // 2, places * channels * element) / 1e6
        computed = work(shards, window // 2, tile_of(channels, window, element))
        table.append(
            [name, kind.__name__.lower(), str(count), f"{megabytes:.2f}", *(f"{part:.2f}" for part in computed)]
        )
    for (name, grid), count in itertools.product(grids.items(), ranks):
        T, H, W = grid
        part = -(-T // count)
        table.append([name, "gathered", str(count), f"{(T - part) * H * W * channels * element / 1e6:.1f}", "", "", ""])
    return table


def table(rows: list[list[str]]) -> str:
    head = ["| model | shards | processes | MB received | canvas | rows | tiles |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="tokens of one video (default: three models)"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64], help="processes (default: 8 16 32 64)")
    parser.add_argument("--channels", type=int, default=256, help="of the projected student (default: 256)")
    parser.add_argument("--window", type=int, default=7, help="K (default: 7)")
    parser.add_argument("--element", type=int, default=2, help="bytes of a number (default: 2, as bfloat16)")
    given = parser.parse_args()
    grids = {"given": tuple(given.grid)} if given.grid else GRIDS
    print(table(rows(grids, given.ranks, given.channels, given.window, given.element)))


if __name__ == "__main__":
    main()
