"""The table of operators, and the choice of a backend for a call.

    native      C++ for CPU tensors, CUDA C++ for CUDA tensors, where their modules were built
    triton      Triton kernels (CUDA tensors)
    portable    PyTorch in little memory, on any device of torch
    reference   the literal formulas, run only on request: slow, and large in memory

A family registers each of its operators with its backends, in order of preference. This table is
the only list of operators: `backends()`, `lgf doctor`, the benchmark and the tests read it. The
first backend with neither an `unsupported_reason` nor an `unchosen_reason` for a `Call` runs it.
The argument `backend`, `use_backend` or the environment variable LGF_BACKEND names a backend
instead; if that one cannot run the call, an error gives the reason, and no other backend is tried.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import verify
from .errors import BackendUnavailableError

BACKENDS = ("native", "triton", "portable", "reference")


class Call(NamedTuple):
    """The properties of a call that decide which backends can run it.

    `shape` is that of the first tensor, or None while torch.compile traces, when sizes may be
    symbols. `facts` are properties that the family adds, as pairs (name, value); a call without
    facts stands for any call on the device.
    """

    operator: str
    device: str
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] | None = None
    facts: tuple[tuple[str, object], ...] = ()

    def fact(self, name: str, default=None):
        return dict(self.facts).get(name, default)

    @property
    def device_type(self) -> str:
        return torch.device(self.device).type


Reason = Callable[[Call], str | None]


def no_reason(call: Call) -> None:
    """Return None: the backend can run every call, or may be chosen for every call."""


class Backend(NamedTuple):
    """One way to run an operator.

    name                one of BACKENDS
    module              module of the family's package; its attribute with the operator's name is an `Implementation`
    unsupported_reason  why the backend cannot run a call, or None
    unchosen_reason     why it runs a call only on request, or None
    device_types        types of device that it supports; all if empty
    limits              its limits, as text for `lgf doctor`
    """

    name: str
    module: str
    unsupported_reason: Reason = no_reason
    unchosen_reason: Reason = no_reason
    device_types: tuple[str, ...] = ()
    limits: str = ""
    verified_on: tuple[str, ...] = ()


def never_chosen(call: Call) -> str:
    return "never chosen by itself"


#: Rows that end the list of every operator.
PORTABLE = Backend("portable", "portable")
REFERENCE = Backend("reference", "reference", unchosen_reason=never_chosen)


class Implementation(NamedTuple):
    """An operator in one backend. `empty_residual` allocates what the forward keeps for the backward, if anything."""

    forward: Callable
    backward: Callable
    empty_residual: Callable | None = None


class Proof(NamedTuple):
    """The cases with which a backend proves itself.

    trial      (call, large) -> a case that `verify` compares, or a larger one that it times, with the options of the call
    variants   facts of calls that between them reach every branch of the kernels, for `lgf verify`
    """

    trial: Callable[[Call, bool], verify.Case]
    variants: tuple[dict[str, object], ...] = ({},)


class Operator(NamedTuple):
    """An operator of a family (`package`), and its backends in order of preference. Without a proof all are trusted."""

    name: str
    package: str
    backends: tuple[Backend, ...]
    proof: Proof | None = None

    @property
    def family(self) -> str:
        return self.package.rpartition(".")[2]


OPERATORS: dict[str, Operator] = {}

_forced: str | None = None
_recorded: list[list[Call]] = []


def register(name: str, package: str, *backends: Backend, proof: Proof | None = None) -> Operator:
    """Add an operator to the table, or replace the one of that name."""
    OPERATORS[name] = Operator(name, package, backends, proof)
    return OPERATORS[name]


def families() -> list[str]:
    """Return the names of the families of operators, which are those of their folders."""
    return sorted({operator.family for operator in OPERATORS.values()})


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
        self._previous, _forced = _forced, checked_backend(name, "use_backend")

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *exception) -> None:
        global _forced
        _forced = self._previous


class BackendInfo(NamedTuple):
    """One row of `lgf_kernels.backends()`."""

    name: str
    available: bool
    reason: str


def backends() -> list[BackendInfo]:
    """What can run here, in order of preference: rows of name, available, and a reason for people to read.

    "Available" means that the backend runs some operator on some device of this machine; the reason lists which. Whether
    it takes a particular call is decided, and if need be explained, in that call.

    Example:
        >>> import lgf_kernels as lgf
        >>> [row.name for row in lgf.backends()]
        ['native', 'triton', 'portable', 'reference']
    """
    return [BackendInfo(name, *_availability(name)) for name in BACKENDS]


def _availability(name: str) -> tuple[bool, str]:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    runs, refusals, notes = [], [], []
    for device in devices:
        for operator in OPERATORS:
            call = Call(operator, device)
            reasons = []
            for backend in _named(call, name):
                try:
                    reason = backend.unsupported_reason(call)
                except BackendUnavailableError as error:  # a variable asks for what is not here
                    reason = str(error)
                if reason:
                    reasons.append(reason)
                    continue
                runs.append(f"{operator} on {device}" + (f" ({backend.limits})" if backend.limits else ""))
                if note := backend.unchosen_reason(call):
                    notes.append(note)
                elif needs_proof(backend, call):
                    notes.append("chosen where it has answered right: `lgf verify` asks it now")
            refusals += reasons
            notes += [f"not on cuda: {reason}" for reason in reasons if device == "cuda"]
    if not runs:
        return False, "; ".join(dict.fromkeys(refusals)) or "it has no operator for the devices that are here"
    return True, "; ".join([", ".join(runs), *dict.fromkeys(notes)])


def call_of(operator: str, tensor: Tensor, **facts) -> Call:
    """Return the call of an operator on tensors like this one.

    Facts must not be sizes of tensors: those may be symbols.
    """
    shape = None if torch.compiler.is_compiling() else tuple(tensor.shape)
    return Call(operator, str(tensor.device), tensor.dtype, shape, tuple(facts.items()))


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """List the calls for which a backend is chosen within the block."""
    calls: list[Call] = []
    _recorded.append(calls)
    try:
        yield calls
    finally:
        _recorded.remove(calls)


def resolve(call: Call, backend: str | None, function: str) -> str:
    """Return the name of the backend that runs a call; `function` is the public function that an error names."""
    return _resolve(*call, backend, function)


def _resolve(operator, device, dtype, shape, facts, backend: str | None, function: str) -> str:
    call = Call(operator, device, dtype, shape, facts)
    for calls in _recorded:
        calls.append(call)
    sources = {
        "`backend`": backend,
        "`use_backend`": _forced,
        "the variable LGF_BACKEND": os.environ.get("LGF_BACKEND") or None,
    }
    source, named = next(((source, name) for source, name in sources.items() if name is not None), (None, None))
    if named is None:
        return chosen(call)
    if reason := unsupported_reason(checked_backend(named, function, source), call):
        others = ", ".join(dict.fromkeys(repr(row.name) for row in able(call)))
        raise BackendUnavailableError(
            f"{function}: backend {named!r}, asked for by {source}, cannot run this: {reason}. "
            f"Leave the choice to the library, or choose one of {others}; `lgf doctor` prints what is here and why."
        )
    return named


# The effect of `torch.compiler.assume_constant_result`, without its import of torch's compiler and
# Triton, which takes as long as importing torch itself.
_resolve._dynamo_marked_constant = True


def able(call: Call) -> Iterator[Backend]:
    """Yield the backends that can run a call, in order of preference, with the reference last."""
    return (row for row in OPERATORS[call.operator].backends if _takes(row, call) and not row.unsupported_reason(call))


def chosen(call: Call) -> str:
    """Return the name of the backend that runs a call when none is named.

    Those that have proven themselves on the device come first, the fastest of them before the others; then those that
    need no proof, in order of preference.
    """
    rows = [row for row in able(call) if row.unchosen_reason(call) is None]
    proven = {row.name: verdict(row, call) for row in rows if needs_proof(row, call)}
    right = sorted((name for name, it in proven.items() if it.right), key=lambda name: proven[name].seconds)
    return next(iter([*right, *(row.name for row in rows if row.name not in proven)]))


def needs_proof(row: Backend, call: Call) -> bool:
    return call.device_type in row.verified_on and OPERATORS[call.operator].proof is not None


def verdict(row: Backend, call: Call) -> verify.Verdict:
    """Return what a check of a backend on the call's device has found or finds now."""
    trial, _ = OPERATORS[call.operator].proof
    return verify.verdict(call, row.name, partial(trial, call, False), partial(trial, call, True))


def names_of_able(operator: str, device: str = "cpu") -> list[str]:
    """Return the names of the backends that run an operator on a device, in order of preference."""
    return [row.name for row in able(Call(operator, device))]


def unsupported_reason(name: str, call: Call) -> str | None:
    """Return why a backend cannot run a call, or None."""
    rows = _named(call, name)
    if not rows:
        return f"{call.operator} has no {name} kernel for {call.device_type} tensors"
    reasons = [row.unsupported_reason(call) for row in rows]
    return None if None in reasons else "; ".join(reasons)


def _named(call: Call, name: str) -> list[Backend]:
    return [row for row in OPERATORS[call.operator].backends if row.name == name and _takes(row, call)]


def _takes(row: Backend, call: Call) -> bool:
    return not row.device_types or call.device_type in row.device_types


def checked_backend(name: str | None, function: str, source: str = "`backend`") -> str | None:
    """Return the name if it is one of BACKENDS, or None, else raise."""
    if name is not None and name not in BACKENDS:
        raise ValueError(
            f"{function}: {source} must be one of {', '.join(map(repr, BACKENDS))}, or nothing, to let the "
            f"library choose; got {name!r}."
        )
    return name


def implementation(operator: str, backend: str, device_type: str) -> Implementation:
    """Return an operator in a backend, importing its module at the first use."""
    row, *_ = _named(Call(operator, device_type), backend)
    return getattr(importlib.import_module(f".{row.module}", OPERATORS[operator].package), operator)
