"""Choices of the options of `lgf bench`, which import nothing: help and completion need not wait for torch."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
CLOCKS = ("wall", "cpu")
METRICS = {
    "memory": "peak memory",
    "overhead": "what a call costs the host",
    "first": "the first call, compilation included, from empty compiler caches",
}
JOBS = {
    "sweeps": "cost as one size grows, with fitted exponents",
    "step": "the share of a training step that the loss takes (needs the [train] extra)",
    "ceilings": "only what the machine can do: copy, cache, GEMM; with --out the best of all times",
    "report": "write docs/performance.md and its plots from benchmarks/results",
}
