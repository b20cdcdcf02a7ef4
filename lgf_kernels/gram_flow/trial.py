"""Cases with which a backend of Local Gram Flow proves itself (`core/verify.py`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.numerics import accumulate_dtype
from ..core.registry import Call, implementation
from ..core.verify import Case, pattern
from .options import LgfOptions

#: (B, T, H, W): ragged, with more than one tile and a window that reaches over every edge; and CogVideoX's latent grid, which
#: has a tile for every multiprocessor of a large GPU.
SMALL, LARGE = (2, 3, 9, 19), (1, 13, 30, 45)
#: Channels where the call does not tell them, in traced code.
CHANNELS = 64
#: Options that between them reach every branch of the kernels, for `lgf verify`; facts that are not named have their defaults.
FLOW_VARIANTS = ({}, {"window": 3, "similarity": "dot"}, {"window": 15, "direction": "backward"})
LOSS_VARIANTS = (
    {"teachers": 2},
    {"teachers": 1, "window": 3, "similarity": "dot", "boundary": "zero", "direction": "both", "reduction": "none"},
    {"teachers": 2, "from_logits": True, "direction": "backward", "token_weight": True},
    {"teachers": 1, "window": 15, "divergence": "l2", "reduction": "sum", "token_weight": True},
)


def trial(call: Call, large: bool) -> Case:
    """Return a forward and backward of the call's operator, with its type and options."""
    shape = (*(LARGE if large else SMALL), call.shape[-1] if call.shape else CHANNELS)
    student = pattern(shape, 0, call)
    given = {name: call.fact(name) for name in LgfOptions._fields if call.fact(name) is not None}
    options = LgfOptions(**given)
    return flow(call, student, options) if call.operator == "local_gram_flow" else loss(call, student, options)


def flow(call: Call, features: Tensor, options: LgfOptions) -> Case:
    def run(backend: str) -> Sequence[Tensor]:
        forward, backward, _ = implementation(call.operator, backend, call.device_type)
        logits = forward(features, options)
        return logits, backward(torch.ones_like(logits), features, options)

    return run


def loss(call: Call, student: Tensor, options: LgfOptions) -> Case:
    from_logits = call.fact("from_logits", False)
    teachers = [pattern(student.shape, 1 + m, call) for m in range(call.fact("teachers", 2))]
    if from_logits:
        make = implementation("local_gram_flow", "portable", call.device_type).forward
        teachers = [make(teacher, options._replace(direction="forward")).to(torch.float16) for teacher in teachers]
    weights = [1 / len(teachers)] * len(teachers)
    B, T, *rest, _ = student.shape
    token_weight = None
    if call.fact("token_weight"):
        token_weight = pattern((B, T - 1, *rest), -1, call).abs().to(accumulate_dtype(student))
        token_weight[:, :1, :-1] = 0  # rows and tiles that are skipped

    def run(backend: str) -> Sequence[Tensor]:
        forward, backward, _ = implementation(call.operator, backend, call.device_type)
        value, residual = forward(student, teachers, weights, token_weight, options, from_logits, True)
        return value, backward(torch.ones_like(value), student, residual, token_weight, options)

    return run
