"""Ceilings of this machine, measured: copying memory, multiplying matrices, copying within the cache.

The best of several runs, since a ceiling is what is possible and not what is usual. They are measured anew for every run,
unless a folder of results has them already from the same device, threads, torch and clock. On a busy machine they come out
too low: `lgf bench ceilings --out DIR` measures them again and keeps the better.
"""

from pathlib import Path

import torch

from .families.base import PASSES, Work
from .results import device_name, read_ceilings, write_ceilings
from .timing import best, clock_in_use

#: What ceilings depend on, and every row too.
MACHINE = ("device", "threads", "torch", "clock")
#: Bytes of the buffers copied (larger than any cache), and the side of the matrices multiplied.
COPY = {"cpu": 2**28, "cuda": 2**31}
GEMM = {"cpu": 1024, "cuda": 8192}
#: Bytes copied within the cache where torch does not know its size: an L2 of a CPU core, times its threads.
CORE_CACHE = 2**18
RUNS = 20


def ceilings(device: str, dtypes: tuple[str, ...], folder: Path | None = None, again: bool = False) -> dict:
    """Return {"copy": bytes/s, "L2": bytes/s, "gemm": {dtype: FLOP/s}}; a copy counts what it reads and what it writes."""
    here = device_name(device), torch.get_num_threads(), torch.__version__, clock_in_use(device)
    machine, kind = dict(zip(MACHINE, here, strict=True)), torch.device(device).type
    known = read_ceilings(folder) if folder else {}
    if not _are_of(known, machine):
        known = machine | {"copy": 0.0, "L2": 0.0, "gemm": {}}
    for name, size in (("copy", COPY[kind]), ("L2", _cache(device))):
        if again or not known[name]:
            known[name] = max(known[name], _copy(device, size))
    for dtype in dict.fromkeys(("float32", *dtypes)):
        if again or dtype not in known["gemm"]:
            known["gemm"][dtype] = max(known["gemm"].get(dtype, 0.0), _gemm(device, dtype))
    if folder:
        write_ceilings(folder, known)
    return known


def flops(ceiling: dict, dtype: str) -> float:
    """Return FLOP/s of products of this type; no less than in float32, to which anything can be converted."""
    return max(ceiling["gemm"][dtype], ceiling["gemm"]["float32"]) if dtype != "float64" else ceiling["gemm"][dtype]


def floor_ms(work: dict[str, Work], dtype: str, ceiling: dict) -> dict[str, float]:
    """Return the floor under each pass."""
    rates = flops(ceiling, dtype), ceiling["copy"]
    return {part: 1e3 * it.seconds(*rates) for part, it in work.items()}


def with_floors(rows: list[dict], folder: Path) -> list[dict]:
    """Return the rows with their floors by the ceilings of the folder, which may have risen since the rows were made.

    Rows of other threads, torch or clock keep the floors they were made with.
    """
    ceiling = read_ceilings(folder)
    return [
        row | {"floor_ms": floor_ms(_work(row), row["dtype"], ceiling)}
        if _are_of(ceiling, row) and row["dtype"] in ceiling["gemm"]
        else row
        for row in rows
    ]


def _are_of(ceiling: dict, machine: dict) -> bool:
    return all(ceiling.get(key) == machine[key] for key in MACHINE)


def _work(row: dict) -> dict[str, Work]:
    return {part: Work(row["flop"][part], row["bytes"][part]) for part in PASSES}


def as_text(ceiling: dict) -> str:
    gemm = ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in ceiling["gemm"].items())
    return (
        f"{ceiling['device']}, {ceiling['threads']} threads: copy {ceiling['copy'] / 1e9:.3g} GB/s, "
        f"cache {ceiling['L2'] / 1e9:.3g} GB/s, GEMM {gemm}"
    )


def _cache(device: str) -> int:
    """Return about a third of the cache's size, in whole KiB: source and destination stay in it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size // 3 // 1024 * 1024
    return CORE_CACHE * torch.get_num_threads()


def _copy(device: str, size: int) -> float:
    source = torch.zeros(size, dtype=torch.uint8, device=device).view(torch.float32)
    target = torch.zeros_like(source)
    return 2 * size / best(lambda: target.copy_(source), device, RUNS, at_least=2**29 // size)


def _gemm(device: str, dtype: str) -> float:
    """Return FLOP/s with random numbers: zeros draw less power and run faster."""
    side = GEMM[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    return 2 * side**3 / best(lambda: a @ b, device, RUNS)
