"""Operators as autograd and torch.compile see them, from one helper: schema, fake, autograd, vmap, and eager calls."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, library
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .errors import BackendUnavailableError, OnceDifferentiableError


class Pass(NamedTuple):
    """One direction of an operator: what computes it, and what tells the shapes of its outputs without computing."""

    compute: Callable
    fake: Callable


class Differentiable:
    """An operator `lgf::name` with a gradient that can be taken once.

    Compiled code sees the registered operator. Eager calls go through a `torch.autograd.Function` of the same name and
    formulas instead, which saves what the dispatcher takes for an operator in Python: 0.2 ms of a forward and backward,
    several times what small inputs take on a GPU.

    Args:
        name: of the operator; its backward is `name` + "_backward".
        function: the public function that errors speak for.
        forward, backward: `compute` and `fake` of each, with the same arguments. The gradient is that of the forward's
            first argument; all others are constants. Under `torch.vmap` an argument `needs_grad` is set anew for each call.
        save: (ctx, inputs, output), as in torch.library.
        gradients: (ctx, backward, *grads) -> one for each input, where `backward(*arguments)` runs the backward.
    """

    def __init__(self, name: str, function: str, forward: Pass, backward: Pass, save: Callable, gradients: Callable):
        def differentiate(ctx, *grads):
            return gradients(ctx, self.backward, *grads)

        def mapped(arguments: dict) -> dict:
            student, *constants = arguments.values()
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(constants)):
                raise ValueError(
                    f"{function}: a teacher or a weight requires grad, but the loss has no gradient for it: it is a constant "
                    "of the loss. Detach it before torch.vmap maps over it."
                )
            if not arguments.get("needs_grad", True):
                arguments["needs_grad"] = needs_gradient(student)  # the tensor that was mapped over did not say
            return arguments

        def save_nothing(ctx, inputs, output):
            pass

        def refuse(ctx, *grads):
            raise OnceDifferentiableError(
                f"{function}: the backward of this loss is once differentiable, and a second derivative was asked for "
                'through it. Call backward without create_graph=True, or use backend="reference", which is plain PyTorch.'
            )

        self.forward = Operation(name, function, forward, save, differentiate, mapped)
        self.backward = Operation(f"{name}_backward", function, backward, save_nothing, refuse, dict)

    def __call__(self, *arguments):
        return self.forward(*arguments)


class Operation:
    """One direction of an operator, called as it is registered in compiled code and past the dispatcher elsewhere.

    `mapped`: of the arguments by name, as `torch.vmap` found them, those of a call for one element.
    """

    def __init__(
        self, name: str, function: str, one_way: Pass, save: Callable, differentiate: Callable, mapped: Callable
    ):
        self.function, self.compute, self.mapped = function, one_way.compute, mapped
        self.names = list(inspect.signature(one_way.compute).parameters)
        self.operator = library.custom_op(f"lgf::{name}", one_way.compute, mutates_args=())
        self.operator.register_fake(one_way.fake)
        self.operator.register_autograd(differentiate, setup_context=save)
        self.operator.register_vmap(partial(self.one_by_one, self.operator))
        self.eager = self.autograd_function(name, save, differentiate)

    def __call__(self, *arguments):
        if torch.compiler.is_compiling():
            return self.operator(*arguments)
        if not torch.is_grad_enabled() and memory_is_read(arguments):
            return self.compute(*arguments)
        return self.eager.apply(*arguments)

    def autograd_function(self, name: str, save: Callable, differentiate: Callable) -> type[torch.autograd.Function]:
        """Make the function of eager calls. A profiler shows it under the operator's name."""

        def forward(*arguments):
            return (self.compute if memory_is_read(arguments) else self.operator)(*arguments)

        forward.__signature__ = inspect.signature(
            forward
        )  # autograd asks for it at each call: 30 us unless it is there

        def backward(ctx, *grads):
            # An operator has a gradient for each tensor of a list, a Function one for each argument.
            return tuple(None if isinstance(grad, list) else grad for grad in differentiate(ctx, *grads))

        def jvp(ctx, *tangents):
            raise BackendUnavailableError(
                f"{self.function}: the kernels have no derivative for torch.func.jvp and forward-mode automatic "
                'differentiation. Use backend="reference", which is plain PyTorch, or a gradient: backward(), '
                "torch.autograd.grad, torch.func.grad."
            )

        methods = {"forward": forward, "setup_context": save, "backward": backward, "jvp": jvp}
        methods["vmap"] = partial(self.one_by_one, self)
        return type(f"lgf::{name}", (torch.autograd.Function,), {key: staticmethod(it) for key, it in methods.items()})

    def one_by_one(self, call: Callable, info, in_dims, *arguments):
        """Call once for each element that `torch.vmap` maps over, which is a batch of videos by itself."""
        results = []
        for i in range(info.batch_size):
            element = [selected(x, dim, i) for x, dim in zip(arguments, in_dims, strict=True)]
            results.append(call(*self.mapped(dict(zip(self.names, element, strict=True))).values()))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def selected(argument, dim, i: int):
    """Element i of what `torch.vmap` maps over: of a tensor, or of each tensor in a list."""
    if dim is None:
        return argument
    if isinstance(argument, list | tuple):
        return [selected(x, d, i) for x, d in zip(argument, dim, strict=True)]
    return argument.select(dim, i)


def tensors_of(arguments: Iterable) -> Iterator[Tensor]:
    """The tensors among arguments and in lists of them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from tensors_of(argument)


def memory_is_read(arguments: Iterable) -> bool:
    """Return whether computing may read the memory of these tensors, with nothing else watching.

    A subclass, a meta tensor, zeros and one of many gradients that autograd makes at once have no memory; a negation may
    still be to be done; a dual tensor of forward mode has a second one. A dispatch mode (a checkpoint policy, a tracer, a
    counter of FLOP) must see the operator: torch has no public name for asking whether there is one.
    """
    return not is_in_torch_dispatch_mode() and all(map(holds_its_numbers, tensors_of(arguments)))


def holds_its_numbers(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_neg():
        return False
    try:
        return tensor.data_ptr() != 0 and forward_ad.unpack_dual(tensor).tangent is None
    except RuntimeError:  # a wrapper of a function transform
        return False


def needs_gradient(student: Tensor) -> bool:
    """Whether a backward may follow. Under `torch.vmap`, `Differentiable` asks the elements."""
    return torch.is_grad_enabled() and student.requires_grad


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """The autocast rule: inputs are taken as they come, and products accumulate in the types `losses` promise.

    Under autocast the products inside an operator would be rounded to half precision; a loss must not be.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
