"""Protocol of a family of operators: cases with named tensors, their work, providers, sweeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from operator import ge
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lgf_kernels.core.registry import Call, recorded_calls

PASSES = ("forward", "backward", "both")

#: Tensors by the names that the public function has for them.
Tensors = dict[str, Tensor | list[Tensor]]
#: A function of the tensors of a case, by name.
Loss = Callable[..., Tensor]


class Work(NamedTuple):
    """The least work of one pass.

    FLOP are those of the products, two for a multiply-add; softmax, norms and the like are a few per cent on top and are left
    out. Bytes are the inputs read once and the outputs written once.
    """

    flop: int
    bytes: int

    def seconds(self, flops: float, bandwidth: float) -> float:
        """Return the floor on a machine of so many FLOP/s and bytes/s: max(FLOP / GEMM ceiling, bytes / copy ceiling)."""
        return max(self.flop / flops, self.bytes / bandwidth)


class Inputs(NamedTuple):
    """Tensors of a call, and the gradient by its output, which a scalar needs none of."""

    tensors: Tensors
    upstream: Tensor | None = None

    def leaves(self) -> list[Tensor]:
        """Return the tensors that gradients are taken by."""
        return [tensor for tensor in _flat(self.tensors) if tensor.requires_grad]

    def double(self) -> "Inputs":
        """Return the same numbers in float64, as other leaves."""

        def double(tensor: Tensor) -> Tensor:
            copy = tensor.detach().double() if tensor.is_floating_point() else tensor
            return copy.requires_grad_(tensor.requires_grad)

        tensors = {name: each(double, value) for name, value in self.tensors.items()}
        return Inputs(tensors, None if self.upstream is None else self.upstream.double())


def each(function: Callable, value: Tensor | list[Tensor]):
    """Apply a function to a tensor, or to each of a list."""
    return [function(tensor) for tensor in value] if isinstance(value, list) else function(value)


def _flat(tensors: Tensors) -> Iterator[Tensor]:
    for value in tensors.values():
        yield from value if isinstance(value, list) else [value]


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in _flat(tensors))


@dataclass(frozen=True)
class Case(ABC):
    """One operator at one size. A subclass has the sizes and all else that is the operator's own."""

    operator: ClassVar[str]
    #: The tensors that gradients are taken by.
    differentiable: ClassVar[tuple[str, ...]]
    #: The shapes that `--shapes` may give: in words, and the least of them.
    shapes: ClassVar[str]
    least: ClassVar[tuple[int, ...]]
    #: A shape at which arithmetic takes no time: what is left is the overhead of a call.
    small: ClassVar[tuple[int, ...]]
    #: The least tolerance of gradients, whatever the type.
    gradient_tolerance: ClassVar[float] = 0.0

    shape: tuple[int, ...]
    _: KW_ONLY
    about: str = "a shape of yours"
    #: Takes minutes on a CPU, where it runs only if it is asked for by its name.
    large: bool = False
    dtype: str = "float32"
    device: str = "cpu"

    @abstractmethod
    def layout(self) -> Tensors:
        """Return the tensors without their memory (`empty`): names, shapes and types."""

    @abstractmethod
    def call(self, *, backend: str | None = None, **tensors) -> Tensor:
        """Call the public function."""

    @abstractmethod
    def flop(self) -> tuple[int, int]:
        """Return the FLOP of forward and backward."""

    @classmethod
    def takes(cls, shape: tuple[int, ...]) -> bool:
        """Return whether there are cases of a shape."""
        return len(shape) == len(cls.least) and all(map(ge, shape, cls.least))

    def smallest(self) -> "Case":
        """Return the case of the small shape, or of one that is smaller still."""
        return replace(self, shape=tuple(map(min, self.shape, self.small)))

    def output(self) -> Tensor | None:
        """Return the output without its memory, or None for a scalar."""
        return None

    def options(self) -> dict[str, object]:
        """Return the options that differ between cases, as they are shown and recorded."""
        return {}

    def registry_call(self) -> Call:
        """Return the call by which the registry chooses a backend, as the public function makes it."""
        with recorded_calls() as calls:
            self.call(backend="reference", **self.layout())
        return calls[0]._replace(device=self.device)

    def oracle(self, tensors: Tensors) -> Iterator[Tensor]:
        """Yield what the oracle's output is the sum of, in parts that fit in memory."""
        yield self.call(backend="reference", **tensors)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor without memory, in the type of the case unless another is given."""
        return torch.empty(shape, dtype=dtype or getattr(torch, self.dtype), device="meta")

    def tensors(self) -> Tensors:
        """Return random tensors of the layout, the same every time."""
        random = self._generator()
        return {name: each(random, value) for name, value in self.layout().items()}

    def inputs(self) -> Inputs:
        """Return the tensors, those of `differentiable` as leaves that require grad, and the upstream gradient."""
        tensors, output = self.tensors(), self.output()
        for name in self.differentiable:
            each(Tensor.requires_grad_, tensors[name])
        return Inputs(tensors, None if output is None else self._generator(1)(output))

    def work(self) -> dict[str, Work]:
        """Return the least work of each pass; "both" is one pass that makes output and gradient together."""
        forward, backward = self.flop()
        layout, output = self.layout(), self.output()
        read, written = _bytes(layout), 0 if output is None else output.nbytes
        own = _bytes({name: layout[name] for name in self.differentiable})
        return {
            "forward": Work(forward, read + written),
            "backward": Work(backward, own + written + own),
            "both": Work(forward + backward, read + 2 * written + own),
        }

    def _generator(self, seed: int = 0) -> Callable[[Tensor], Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)  # a CPU takes a second for each large tensor

        def random(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=self.device).to(like.dtype)

        return random


class Provider(NamedTuple):
    """One way to compute operators.

    make                (case) -> the function of its tensors
    needs               (case) -> its memory in bytes, guessed
    unsupported_reason  (case) -> why it cannot run here, or None
    compiles            for seconds to minutes, and anew for every shape
    operators           those of its file that it computes; empty: all
    """

    about: str
    make: Callable[[Case], Loss]
    needs: Callable[[Case], float] = lambda case: 0.0
    unsupported_reason: Callable[[Case], str | None] = lambda case: None
    compiles: bool = False
    operators: tuple[str, ...] = ()


def on_backend(backend: str, case: Case) -> Loss:
    """Return the public function on one of the library's backends."""
    return lambda **tensors: case.call(backend=backend, **tensors)


def eager(case: Case) -> Loss:
    """Return the library's oracle."""
    return on_backend("reference", case)


def compiled(case: Case, make: Callable[[Case], Loss] = eager) -> Loss:
    """Return what torch.compile makes of a provider's function, of the oracle by default."""
    return torch.compile(make(case), dynamic=False)


class Tuned(NamedTuple):
    """A table of a family's `triton_configs.py`, the case whose kernels use it, and the pass that shows its effect."""

    table: str
    case: Case
    part: str = "both"


class Sweep(NamedTuple):
    """Cases by the size that varies, which is called `quantity`."""

    quantity: str
    about: str
    cases: dict[int, Case]
