"""Small cases, and rows of results, for the tests of the benchmark."""

from lgf_bench.families.gram_flow import LgfKl, LocalGramFlow
from lgf_bench.families.patch_cosine import PatchCosine
from lgf_bench.families.token_relation import TokenRelation

SMALL = {
    "small-lgf": LgfKl((1, 3, 6, 9, 8), teacher_channels=(8, 5), about="a small Local Gram Flow"),
    "small-cached": LgfKl((2, 3, 6, 9, 8), teacher_channels=(8, 5), cached=True, about="the same from cached logits"),
    "small-window": LgfKl((1, 2, 9, 3, 4), 3, teacher_channels=(4,), about="another window"),
    "small-logits": LocalGramFlow((1, 3, 10, 7, 8), about="small logits"),
    "small-relation": TokenRelation((2, 5, 12, 8), 5, about="a small token relation"),
    "small-videorepa": TokenRelation((1, 4, 6, 8), form="videorepa", about="another form"),
    "small-patches": PatchCosine((2, 3, 4, 5, 8), (5, 3), about="small patches of two teachers"),
    "small-crepa": PatchCosine((1, 4, 3, 5, 8), form="crepa", about="small patches of several frames"),
    "small-large": LgfKl((1, 2, 5, 5, 4), teacher_channels=(4,), about="left out on a CPU", large=True),
}


def row(**values) -> dict:
    """Return a row as a run leaves it, with some values changed."""
    times = {"median_ms": 10.0, "low_ms": 9.0, "high_ms": 11.0}
    parts, shape = ("forward", "backward", "both"), [1, 13, 30, 45, 256]
    return {
        "case": "cogvideox-latent", "operator": "lgf_kl", "tensors": {"student": shape, "teachers": [shape, shape]},
        "options": {"window": 7}, "dtype": "float32", "provider": "eager", "status": "right", "output_error": 1e-7,
        "gradient_error": 2e-7, "flop": dict.fromkeys(parts, 10**8), "bytes": dict.fromkeys(parts, 10**7),
        "floor_ms": dict.fromkeys(parts, 1.0), **dict.fromkeys(parts, times), "peak_bytes": 2**20,
        "overhead_us": 100.0, "first_call_s": 1.0, "clock": "wall", "device": "a machine", "driver": None, "threads": 2,
        "lgf_kernels": "0", "torch": "2", "triton": None, "cuda": None, "python": "3", "commit": "abc", "run": "r1",
        "command": "lgf bench",
    } | values  # fmt: skip
