"""Operators as autograd and torch.compile see them, from one helper: schema, fake, autograd, vmap, the way past the dispatcher."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, library
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .errors import BackendUnavailableError, OnceDifferentiableError


class Pass(NamedTuple):
    """One direction of an operator: what computes it, and what tells the shapes of its outputs without computing."""

    compute: Callable
    fake: Callable


class Differentiable:
    """An operator `lgf::name` with a gradient that can be taken once.

    Args:
        name: of the operator; its backward is `name` + "_backward".
        function: the public function that errors speak for.
        forward, backward: `compute` and `fake` of each, with the same arguments.
        save: (ctx, inputs, output), as in torch.library.
        gradients: (ctx, backward, *grads) -> one for each input, where `backward(tensors, *arguments)` runs the backward.

    A call is `operator(tensors, *arguments)`: `tensors` are those among the arguments.
    """

    def __init__(self, name: str, function: str, forward: Pass, backward: Pass, save: Callable, gradients: Callable):
        self.compute, self.compute_backward = forward.compute, backward.compute
        self.forward = library.custom_op(f"lgf::{name}", forward.compute, mutates_args=())
        self.backward = library.custom_op(f"lgf::{name}_backward", backward.compute, mutates_args=())
        self.forward.register_fake(forward.fake)
        self.backward.register_fake(backward.fake)

        def differentiate(ctx, *grads):
            return gradients(ctx, self.run_backward, *grads)

        self.forward.register_autograd(differentiate, setup_context=save)
        forbid_double_backward(self.backward, function)
        map_one_by_one(self.forward)
        map_one_by_one(self.backward)
        self.undispatched = undispatched(self.forward, forward.compute, save, differentiate)

    def __call__(self, tensors: Sequence[Tensor | None], *arguments):
        return shortest(tensors, self.compute, self.undispatched, self.forward)(*arguments)

    def run_backward(self, tensors: Sequence[Tensor | None], *arguments):
        return shortest(tensors, self.compute_backward, self.backward, self.backward)(*arguments)


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """The autocast rule: inputs are taken as they come, and products accumulate in the types `losses` promise.

    Under autocast the products inside an operator would be rounded to half precision; a loss must not be.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def shortest(tensors: Sequence, compute: Callable, differentiable: Callable, operator: library.CustomOpDef) -> Callable:
    """The shortest way to run an operator on these tensors that everything which has to see the call still sees.

    The dispatcher takes some 0.3 ms for an operator in Python with a list of tensors, several times what small inputs
    take on a GPU. It is passed by where nothing but autograd (`differentiable`), or nothing at all (`compute`), looks,
    and where the memory of every tensor holds its numbers.
    """
    if torch.compiler.is_compiling():
        return operator
    given = [tensor for tensor in tensors if tensor is not None]
    refuse_forward_derivatives(operator, given)
    observed = (
        torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or not all(map(holds_its_numbers, given))
    )
    if observed:
        return operator
    return differentiable if torch.is_grad_enabled() else compute


def holds_its_numbers(tensor: Tensor) -> bool:
    """Whether the numbers are those in memory.

    A subclass, a meta tensor or one of many gradients that autograd makes at once may have none, and a negation or zeros may
    still be to be done.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    elsewhere = tensor.is_meta or torch._C._functorch.is_legacy_batchedtensor(tensor)
    return not (elsewhere or tensor.is_neg() or tensor._is_zerotensor())


def refuse_forward_derivatives(operator: library.CustomOpDef, tensors: Sequence[Tensor]) -> None:
    """The dispatcher drops the tangents silently, and answers `torch.func.grad` with the name of a class nobody wrote."""
    transformed = torch._C._are_functorch_transforms_active()
    tracked = transformed and any(torch._C._functorch.is_gradtrackingtensor(t) for t in tensors)
    dual = forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if tracked or dual:
        raise BackendUnavailableError(
            f"{operator._name}: the kernels have no derivative for torch.func.grad, torch.func.jvp and forward-mode automatic "
            'differentiation. Use backend="reference", which is plain PyTorch, or torch.autograd.grad and backward().'
        )


def needs_gradient(student: Tensor) -> bool:
    """Whether a backward may follow. A tensor that `torch.vmap` maps over does not say."""
    return torch.is_grad_enabled() and (student.requires_grad or torch._C._functorch.is_batchedtensor(student))


def map_one_by_one(operator: library.CustomOpDef) -> None:
    """Register what `torch.vmap` does: one call for each element that is mapped over, which is a batch of videos by itself.

    Left alone, torch does the same with a warning that is to be reported to torch, or refuses, if there are lists of tensors.
    """

    def calls(info, in_dims, *arguments):
        leaves, structure = tree_flatten(arguments)
        dims = tree_leaves(in_dims)
        results = []
        for i in range(info.batch_size):
            element = [x if dim is None else x.select(dim, i) for x, dim in zip(leaves, dims, strict=True)]
            results.append(operator(*tree_unflatten(element, structure)))
        stacked = tree_map(lambda *tensors: torch.stack(tensors), *results)
        return stacked, tree_map(lambda _: 0, stacked)

    operator.register_vmap(calls)


def undispatched(
    operator: library.CustomOpDef, compute: Callable, setup_context: Callable, differentiate: Callable
) -> Callable:
    """The operator made of these three, seen by autograd, under the operator's name, but not by the dispatcher."""

    def forward(ctx, *arguments):
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    def backward(ctx, *grads):
        # An operator has a gradient for each tensor of a list, a Function one for each argument.
        return tuple(None if isinstance(grad, list) else grad for grad in differentiate(ctx, *grads))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(operator._name, (torch.autograd.Function,), methods).apply


def forbid_double_backward(backward_op, operator: str) -> None:
    """Register an autograd formula of `backward_op` that explains instead of differentiating."""

    def refuse(ctx, *grads):
        raise OnceDifferentiableError(
            f"{operator}: the backward of this loss is once differentiable, and a second derivative was asked for "
            'through it. Call backward without create_graph=True, or use backend="reference", which is plain PyTorch.'
        )

    backward_op.register_autograd(refuse)
