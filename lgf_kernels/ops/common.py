"""What all operators share: the autocast rule, the short way past the dispatcher, the refusal of a second derivative."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..errors import OnceDifferentiableError


def without_autocast(tensor: Tensor) -> torch.autocast:
    """The autocast rule: inputs are taken as they come, and products accumulate in the types `losses` promise.

    Under autocast the products inside an operator would be rounded to half precision; a loss must not be.
    """
    return torch.autocast(tensor.device.type, enabled=False)


def shortest(tensor: Tensor, compute: Callable, differentiable: Callable, operator: Callable) -> Callable:
    """The shortest way to run an operator that everything which has to see the call still sees.

    The dispatcher takes some 0.3 ms for an operator in Python with a list of tensors, several times what small inputs
    take on a GPU. It is passed by where nothing but autograd (`differentiable`), or nothing at all (`compute`), looks.
    """
    observed = (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or type(tensor) not in (Tensor, torch.nn.Parameter)
    )
    if observed:
        return operator
    return differentiable if torch.is_grad_enabled() else compute


def undispatched(compute: Callable, setup_context: Callable, differentiate: Callable) -> Callable:
    """The operator made of these three, seen by autograd but not by the dispatcher."""

    def forward(ctx, *arguments):
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    def backward(ctx, *grads):
        # An operator has a gradient for each tensor of a list, a Function one for each argument.
        return tuple(None if isinstance(grad, list) else grad for grad in differentiate(ctx, *grads))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(compute.__name__, (torch.autograd.Function,), methods).apply


def forbid_double_backward(backward_op, operator: str) -> None:
    """Register an autograd formula of `backward_op` that explains instead of differentiating."""

    def refuse(ctx, *grads):
        raise OnceDifferentiableError(
            f"{operator}: the backward of this loss is once differentiable, and a second derivative was asked for "
            'through it. Call backward without create_graph=True, or use backend="reference", which is plain PyTorch.'
        )

    backward_op.register_autograd(refuse)
