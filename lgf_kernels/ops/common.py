"""What all operators share: the autocast rule, and the refusal of a second derivative."""

import torch
from torch import Tensor

from ..errors import OnceDifferentiableError


def without_autocast(tensor: Tensor) -> torch.autocast:
    """The autocast rule: inputs are taken as they come, and products accumulate in the types `losses` promise.

    Under autocast the products inside an operator would be rounded to half precision; a loss must not be.
    """
    return torch.autocast(tensor.device.type, enabled=False)


def forbid_double_backward(backward_op, operator: str) -> None:
    """Register an autograd formula of `backward_op` that explains instead of differentiating."""

    def refuse(ctx, *grads):
        raise OnceDifferentiableError(
            f"{operator}: the backward of this loss is once differentiable, and a second derivative was asked for "
            'through it. Call backward without create_graph=True, or use backend="reference", which is plain PyTorch.'
        )

    backward_op.register_autograd(refuse)
