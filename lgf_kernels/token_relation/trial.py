"""Cases with which a backend of token relations proves itself (`core/verify.py`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.numerics import accumulate_dtype
from ..core.registry import Call, implementation
from ..core.verify import Case, pattern
from .options import RelationOptions

#: (B, F, N): ragged tiles that run over the ends of frames; and some 4,000 tokens.
SMALL, LARGE = (2, 3, 95), (1, 8, 512)
#: Channels where the call does not tell them, in traced code.
CHANNELS = 64
#: Of "l1"; "l2" has none.
MARGIN = 0.05
VARIANTS = (
    {},
    {"reduction": "none", "teacher_channels": 96},
    {"needs_grad": False},
    {"distance": "l2"},
    {"negatives": "clamp"},
    {"distance": "l2", "negatives": "clamp-teacher"},
    {"distance": "l2", "negatives": "clamp", "similarity": "dot"},
    {"similarity": "dot"},
)


def trial(call: Call, large: bool) -> Case:
    """Return a forward and, unless the call is without gradient, backward with its type, and weights of which some are 0."""
    shape = (*(LARGE if large else SMALL), call.shape[-1] if call.shape else CHANNELS)
    student = pattern(shape, 0, call)
    teacher = pattern((*shape[:-1], call.fact("teacher_channels", shape[-1])), 1, call)
    weight = pattern((shape[1], shape[1]), 2, call).abs().to(accumulate_dtype(student))
    weight[0, -1] = weight[-1, 0] = 0
    given = {name: value for name, value in call.facts if name in RelationOptions._fields}
    options = RelationOptions(**given)
    if not options.squared:
        options = options._replace(margin=MARGIN)
    needs_grad = call.fact("needs_grad", True)

    def run(backend: str) -> Sequence[Tensor]:
        forward, backward, _ = implementation(call.operator, backend, call.device_type)
        value, residual = forward(student, teacher, weight, options, needs_grad)
        if not needs_grad:
            return (value,)
        return value, backward(torch.ones_like(value), residual, options.reduction, student.dtype)

    return run
