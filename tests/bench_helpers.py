"""Small cases, and rows of results, for the tests of the benchmark."""

from lgf_bench import cases

SMALL = {
    "small-lgf": cases.Case("lgf_kl", (1, 3, 6, 9, 8), (8, 5), "a small Local Gram Flow"),
    "small-cached": cases.Case("lgf_kl", (2, 3, 6, 9, 8), (8, 5), "the same from cached logits", cached=True),
    "small-window": cases.Case("lgf_kl", (1, 2, 9, 3, 4), (4,), "another window", window=3),
    "small-logits": cases.Case("local_gram_flow", (1, 3, 10, 7, 8), (), "small logits"),
    "small-relation": cases.Case("token_relation", (2, 5, 12, 8), (5,), "a small token relation"),
    "small-videorepa": cases.Case("token_relation", (1, 4, 6, 8), (5,), "another form", form="videorepa"),
    "small-large": cases.Case("lgf_kl", (1, 2, 5, 5, 4), (4,), "left out on a CPU", large=True),
}


def row(**values) -> dict:
    """A row as a run leaves it, with some values changed."""
    times = {"median_ms": 10.0, "low_ms": 9.0, "high_ms": 11.0}
    parts = ("forward", "backward", "both")
    return {
        "case": "cogvideox-latent", "operator": "lgf_kl", "shape": [1, 13, 30, 45, 256], "teacher_channels": [256, 256],
        "window": 7, "dtype": "float32", "provider": "eager", "status": "right", "output_error": 1e-7,
        "gradient_error": 2e-7, "flop": dict.fromkeys(parts, 10**8), "bytes": dict.fromkeys(parts, 10**7),
        "floor_ms": dict.fromkeys(parts, 1.0), **dict.fromkeys(parts, times), "peak_bytes": 2**20,
        "overhead_us": 100.0, "first_call_s": 1.0, "clock": "wall", "device": "a machine", "driver": None, "threads": 2,
        "lgf_kernels": "0", "torch": "2", "triton": None, "cuda": None, "python": "3", "commit": "abc", "run": "r1",
        "command": "lgf bench",
    } | values  # fmt: skip
