"""Which backend runs an operator: an ordered table, and one predicate for each backend that both decides and explains.

    native      C++ (CPU tensors) or CUDA C++ (CUDA tensors), where its module was built
    triton      Triton kernels (CUDA tensors)
    portable    lean PyTorch, on any device torch has
    reference   the literal formulas; slow and large, and so never chosen by itself

An operator asks `resolve` for the first that can. `backend="..."` in a call, `use_backend`, or the environment variable
LGF_BACKEND name one instead; one that cannot run the inputs raises with the reason rather than falling back.
"""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import native, triton_kernels
from .errors import BackendUnavailableError

OPERATORS = ("local_gram_flow", "lgf_kl", "token_relation")


class Request(NamedTuple):
    """What decides whether a backend can run a call."""

    operator: str
    device: str


class BackendInfo(NamedTuple):
    """One row of `lgf_kernels.backends()`."""

    name: str
    available: bool
    reason: str


def _native(request: Request) -> str | None:
    return native.why_not(request.operator, request.device)


def _triton(request: Request) -> str | None:
    return triton_kernels.why_not(request.operator, request.device)


def _anywhere(request: Request) -> str | None:
    return None


#: In order of preference. A predicate returns None if the backend can run the request, else the reason why not.
PREDICATES: dict[str, Callable[[Request], str | None]] = {
    "native": _native,
    "triton": _triton,
    "portable": _anywhere,
    "reference": _anywhere,
}
NEVER_BY_ITSELF = ("reference",)
#: Where a backend lives, if not in the package of its own name: `triton` is the compiler's.
PACKAGES = {"triton": "triton_kernels"}

_forced: str | None = None


class use_backend:
    """Run every operator on one backend, instead of the first that can.

    Args:
        name: "native", "triton", "portable" or "reference"; None gives the choice back to the library.

    As a plain call it holds until the next call; as a context manager until the end of the block. It wins over the
    environment variable LGF_BACKEND and is itself overridden by the argument `backend` of a call. It acts on the whole
    process, all threads included. A function that `torch.compile` has compiled keeps the backend it was compiled with.

    Raises:
        ValueError: there is no backend of that name.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> features = torch.randn(1, 3, 4, 5, 8)
        >>> with lgf.use_backend("portable"):
        ...     lgf.local_gram_flow(features, window=3).shape
        torch.Size([1, 2, 4, 5, 9])
    """

    def __init__(self, name: str | None):
        global _forced
        if name is not None:
            known(name, "use_backend")
        self._previous, _forced = _forced, name

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *exception) -> None:
        global _forced
        _forced = self._previous


def backends() -> list[BackendInfo]:
    """What can run here, in order of preference: rows of name, available, and a reason for people to read.

    "Available" is for the best device of this machine and every operator the backend has; whether it takes a
    particular call is decided, and if need be explained, in that call.

    Example:
        >>> import lgf_kernels as lgf
        >>> [row.name for row in lgf.backends()]
        ['native', 'triton', 'portable', 'reference']
    """
    return [BackendInfo(name, *_availability(name)) for name in PREDICATES]


def _availability(name: str) -> tuple[bool, str]:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    runs, refusals, notes = [], [], []
    for device in devices:
        for operator in OPERATORS:
            request = Request(operator, device)
            why_not = PREDICATES[name](request)
            (refusals if why_not else runs).append(why_not or f"{operator} on {device}")
            if not why_not and (note := why_not_by_itself(name, request)):
                notes.append(note)
    if not runs:
        return False, "; ".join(dict.fromkeys(refusals))
    return True, "; ".join([", ".join(runs), *dict.fromkeys(notes)])


def resolve(operator: str, tensor: Tensor, backend: str | None, function: str) -> str:
    """The name of the backend that runs `operator` on tensors like this one. `function`: whom an error speaks for."""
    return _resolve(operator, str(tensor.device), backend, function)


def _resolve(operator: str, device: str, backend: str | None, function: str) -> str:
    request = Request(operator, device)
    sources = {
        "`backend`": backend,
        "`use_backend`": _forced,
        "the variable LGF_BACKEND": os.environ.get("LGF_BACKEND"),
    }
    source, named = next(((source, name) for source, name in sources.items() if name), (None, None))
    if named is None:
        return next(name for name in able(request) if by_itself(name, request))
    why_not = PREDICATES[known(named, function, source)](request)
    if why_not:
        raise BackendUnavailableError(
            f"{function}: backend {named!r}, asked for by {source}, cannot run this: {why_not}. "
            f"Leave the choice to the library, or choose one of {', '.join(map(repr, able(request)))}; "
            "`lgf doctor` prints what is here and why."
        )
    return named


# All that `torch.compiler.assume_constant_result` does, but without importing torch's compiler, and Triton with it, for everybody:
# that takes as long as importing torch itself.
_resolve._dynamo_marked_constant = True


def by_itself(name: str, request: Request) -> bool:
    """Whether the library may choose this backend without being told to."""
    return why_not_by_itself(name, request) is None


def why_not_by_itself(name: str, request: Request) -> str | None:
    """Why a backend is left out of the library's own choice: the oracle, interpreted or unmeasured kernels."""
    if name in NEVER_BY_ITSELF:
        return "never chosen by itself"
    if name == "triton" and torch.device(request.device).type != "cuda":
        return "never chosen by itself where it is interpreted"
    if name == "native" and (why_not := native.why_not_by_itself(request.operator, request.device)):
        return f"{request.operator} is not chosen by itself for {torch.device(request.device).type} tensors: {why_not}"
    return None


def able(request: Request) -> list[str]:
    """The backends that can run a request, in order of preference, the oracle last."""
    return [name for name, predicate in PREDICATES.items() if predicate(request) is None]


def known(name: str, function: str, source: str = "`backend`") -> str:
    """The name, if there is a backend of that name at all."""
    if name not in PREDICATES:
        raise ValueError(
            f"{function}: {source} must be one of {', '.join(map(repr, PREDICATES))}, or nothing, to let the "
            f"library choose; got {name!r}."
        )
    return name


def implementation(backend: str, operator: str) -> ModuleType:
    """The module that implements an operator in a backend, imported when it is first needed."""
    return importlib.import_module(f".{PACKAGES.get(backend, backend)}.{operator}", __package__)
