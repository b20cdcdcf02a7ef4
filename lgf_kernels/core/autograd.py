"""Registration of operators with torch: schema, fake, autograd, vmap and eager calls from one class."""

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
    """The forward or the backward of an operator: `fake` gives the outputs' shapes and types without computing."""

    compute: Callable
    fake: Callable


class Differentiable:
    """An operator `lgf::name` with a gradient that can be taken once.

    Compiled code calls the registered operator. Eager calls go through a `torch.autograd.Function`
    of the same name and formulas, which avoids the dispatcher's overhead for operators in Python:
    0.2 ms of a forward and backward, several times as long as small inputs take on a GPU.

    Args:
        name: of the operator; its backward is `name` + "_backward".
        function: name of the public function, for error messages.
        forward, backward: `compute` and `fake` of each, with the same arguments. The gradient is that of the forward's
            first argument; all others are constants. Under `torch.vmap` an argument `needs_grad` is set for each
            element.
        save: (ctx, inputs, output), as in torch.library.
        gradients: (ctx, backward, *grads) -> a gradient for each input; `backward(*arguments)` runs the backward.
        version: of what the forward keeps for the backward. Raise it whenever a backend keeps another size or type:
            it is part of the name, without which inductor's cache would run programs that allocate the old one.
    """

    def __init__(
        self,
        name: str,
        function: str,
        forward: Pass,
        backward: Pass,
        save: Callable,
        gradients: Callable,
        version: int = 1,
    ):
        if version > 1:
            name = f"{name}_v{version}"
        names = list(inspect.signature(forward.compute).parameters)
        flag = names.index("needs_grad") if "needs_grad" in names else None

        def remember(ctx, inputs, output):
            ctx.traced_without_gradient = flag is not None and not inputs[flag]
            save(ctx, inputs, output)

        def differentiate(ctx, *grads):
            if ctx.traced_without_gradient:
                raise RuntimeError(
                    f"{function}: this call was traced or exported without a gradient, so that nothing was kept for its "
                    "backward. Trace it again with gradients on and a student that requires grad."
                )
            return gradients(ctx, self.backward, *grads)

        def mapped(arguments: dict) -> dict:
            student, *constants = arguments.values()
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(constants)):
                raise ValueError(
                    f"{function}: a teacher or a weight requires grad, but the loss has no gradient for it: it is a constant "
                    "of the loss. Detach it before torch.vmap maps over it."
                )
            if not arguments.get("needs_grad", True):
                arguments["needs_grad"] = needs_gradient(student)  # unknown for the mapped tensor
            return arguments

        def save_nothing(ctx, inputs, output):
            pass

        def refuse(ctx, *grads):
            raise OnceDifferentiableError(
                f"{function}: the backward of this loss is once differentiable, and a second derivative was asked for "
                'through it. Call backward without create_graph=True, or use backend="reference", which is plain PyTorch.'
            )

        self.forward = Operation(name, function, forward, remember, differentiate, mapped)
        self.backward = Operation(f"{name}_backward", function, backward, save_nothing, refuse, dict)

    def __call__(self, *arguments):
        return self.forward(*arguments)


class Operation:
    """The forward or the backward of an operator, which eager code calls past the dispatcher.

    `mapped` takes the arguments of one element under `torch.vmap`, by name, and returns those to call with.
    """

    def __init__(
        self, name: str, function: str, one_pass: Pass, save: Callable, differentiate: Callable, mapped: Callable
    ):
        self.function, self.compute, self.mapped = function, one_pass.compute, mapped
        self.names = list(inspect.signature(one_pass.compute).parameters)
        self.operator = library.custom_op(f"lgf::{name}", one_pass.compute, mutates_args=())
        self.operator.register_fake(one_pass.fake)
        self.operator.register_autograd(differentiate, setup_context=save)
        self.operator.register_vmap(partial(self.one_by_one, self.operator))
        self.eager = self.autograd_function(name, save, differentiate)

    def __call__(self, *arguments):
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.operator(*arguments)
        if not torch.is_grad_enabled() and memory_is_readable(arguments):
            return self.compute(*arguments)
        return self.eager.apply(*arguments)

    def autograd_function(self, name: str, save: Callable, differentiate: Callable) -> type[torch.autograd.Function]:
        """Return the autograd function for eager calls. A profiler shows it under the operator's name."""

        def forward(*arguments):
            return (self.compute if memory_is_readable(arguments) else self.operator)(*arguments)

        # Autograd reads the signature in each call: computing it anew would take 30 us.
        forward.__signature__ = inspect.signature(forward)

        def backward(ctx, *grads):
            # An operator returns a gradient for each tensor of a list, a Function one for each argument.
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
        """Call once for each element that `torch.vmap` maps over; each is a batch of videos."""
        results = []
        for i in range(info.batch_size):
            element = [selected(x, dim, i) for x, dim in zip(arguments, in_dims, strict=True)]
            results.append(call(*self.mapped(dict(zip(self.names, element, strict=True))).values()))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def selected(argument, dim, i: int):
    """Return element i of an argument that `torch.vmap` maps over: a tensor, or a list of tensors."""
    if dim is None:
        return argument
    if isinstance(argument, list | tuple):
        return [selected(x, d, i) for x, d in zip(argument, dim, strict=True)]
    return argument.select(dim, i)


def tensors_of(arguments: Iterable) -> Iterator[Tensor]:
    """Yield the tensors among the arguments and in their lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from tensors_of(argument)


def memory_is_readable(arguments: Iterable) -> bool:
    """Return whether the operator may be computed from the memory of these tensors, past the dispatcher.

    A subclass, a meta tensor, an efficient zero tensor and a gradient of a batch that autograd
    computes at once have no memory of their own; a negation may be pending; a dual tensor of
    forward mode has a tangent. A dispatch mode (a checkpoint policy, a tracer, a counter of FLOP)
    must see the operator: torch has no public function that tells whether one is active.
    """
    return not is_in_torch_dispatch_mode() and all(map(has_plain_memory, tensors_of(arguments)))


def check_where_readable(check: Callable, *arguments) -> None:
    """Make a check of tensors' values in code that may be traced or mapped, unless there are no values yet."""
    if not torch.compiler.is_compiling() and memory_is_readable(arguments):
        check(*arguments)


def has_plain_memory(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_neg():
        return False
    try:
        return tensor.data_ptr() != 0 and forward_ad.unpack_dual(tensor).tangent is None
    except RuntimeError:  # a wrapper of a function transform
        return False


def needs_gradient(student: Tensor) -> bool:
    """Return whether a backward may follow. Under `torch.vmap`, `Differentiable` checks each element."""
    return torch.is_grad_enabled() and student.requires_grad


def kept(constant: Tensor | None) -> Tensor | None:
    """Return a constant as autograd can keep it: a copy of one made in inference mode, such as a tracker's points."""
    return constant.clone() if constant is not None and constant.is_inference() else constant


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on the tensor's device.

    Autocast would round the products inside an operator to half precision. Inputs keep their types,
    and sums accumulate in the type that the losses document.
    """
    device = tensor.device.type
    # Not asked of the usual devices: torch.compile of torch 2.11 cannot trace the question.
    available = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()
