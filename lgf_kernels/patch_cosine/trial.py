"""Cases with which a backend of patch cosine proves itself (`core/verify.py`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.numerics import accumulate_dtype
from ..core.registry import Call, implementation
from ..core.verify import Case, pattern
from .folding import divided_by_sum, reduced, shares_of

#: (B, F, H, W): ragged blocks of tokens; and CogVideoX's latent grid.
SMALL, LARGE = (2, 3, 7, 19), (1, 13, 30, 45)
#: Channels where the call does not tell them, in traced code.
CHANNELS = 64
VARIANTS = ({"teachers": 1}, {"teachers": 2, "frames": True}, {"teachers": 3})


def trial(call: Call, large: bool) -> Case:
    """Return a forward and backward with the call's type, teachers and frame weights, of which some are 0."""
    shape = (*(LARGE if large else SMALL), call.shape[-1] if call.shape else CHANNELS)
    student, count = pattern(shape, 0, call), call.fact("teachers", 1)
    channels = [shape[-1] * (m + 1) // count - shape[-1] * m // count for m in range(count)]
    teachers = [pattern((*shape[:-1], C), 1 + m, call) for m, C in enumerate(channels)]
    shares, frame_weight, total = shares_of(range(1, count + 1)), None, None
    if call.fact("frames"):
        frame_weight = pattern((shape[1], shape[1]), -1, call).abs().to(accumulate_dtype(student))
        frame_weight[0, -1] = frame_weight[-1, 0] = 0
        frame_weight, total = divided_by_sum(frame_weight)

    def run(backend: str) -> Sequence[Tensor]:
        forward, backward, _ = implementation(call.operator, backend, call.device_type)
        tokens = forward(student, teachers, shares, frame_weight, True)
        value, factor = reduced(tokens, total, None, "mean", True)
        return value, backward(torch.ones_like(value), tokens.gradient, factor)

    return run
