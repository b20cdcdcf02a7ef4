"""Checks of arguments, made before anything runs.

A message names the function and the argument, what was expected, what was given, and the way out.
The checks read shapes, types and Python numbers, never values on a device: that would make the host
wait. Values of tensors on the CPU are checked inside the operators (`nonnegative`).
"""

import math
import operator as op
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT_NAMES = "float32, bfloat16, float16 or float64"
#: Smallest normal number of float32, of which the reciprocal is finite, and which no device takes for 0.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"


def tensor(function: str, name: str, value) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: `{name}` must be a torch.Tensor, got {type(value).__name__}.")
    if type(value).__name__ == "DTensor":
        raise TypeError(
            f"{function}: `{name}` must be a plain tensor, got a DTensor with placements {value.placements}. Pass "
            f"{name}.to_local() where it is the batch that is sharded (and average the loss over the processes), else "
            f"{name}.full_tensor(); where its tokens are sharded, lgf_kernels.distributed has losses of parts."
        )
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"one of layout {value.layout}"
        way_out = f"{name}.to_padded_tensor(0.0), or one call for each" if value.is_nested else f"{name}.to_dense()"
        raise TypeError(f"{function}: `{name}` must be a dense tensor, got {kind}. Use {way_out}.")
    return value


def floating(function: str, name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        way_out = f"Convert it first, for example {name}.float()."
        if value.dtype.is_complex:
            way_out = (
                f"Give real and imaginary parts as channels, torch.view_as_real({name}).flatten(-2), or {name}.abs()."
            )
        raise TypeError(f"{function}: `{name}` must be {FLOAT_NAMES}, got {value.dtype}. {way_out}")


def real(function: str, name: str, value: Tensor) -> None:
    if value.dtype.is_complex:
        raise TypeError(f"{function}: `{name}` must be real, got {value.dtype}. Give {name}.real, or {name}.abs().")


def detached(function: str, name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{function}: `{name}` requires grad, but the loss has no gradient for it: it is a constant of the loss. "
            f"Detach it: {name}.detach(), or compute it under torch.no_grad()."
        )


def same_device(function: str, name: str, value: Tensor, student_name: str, student: Tensor) -> None:
    if value.device != student.device:
        raise ValueError(
            f"{function}: all tensors must be on one device; `{student_name}` is on {student.device} and `{name}` on "
            f"{value.device}. Move it: {name}.to({student_name}.device)."
        )


def features(function: str, name: str, value) -> Tensor:
    """Check features of a video's frames: floating (B, T, H, W, C), at least two frames, no empty dimension."""
    tensor(function, name, value)
    floating(function, name, value)
    if value.ndim != 5:
        way_out = f"Add the batch dimension: {name}.unsqueeze(0)." if value.ndim == 4 else "Reshape it."
        raise ValueError(
            f"{function}: `{name}` must have shape (B, T, H, W, C): batch, frames, rows, columns, channels; got "
            f"{value.ndim} dimensions, {_shape(value)}. {way_out}"
        )
    not_empty(function, name, value, "(B, T, H, W, C)")
    if value.shape[1] < 2:
        raise ValueError(
            f"{function}: `{name}` must have at least 2 frames (T in (B, T, H, W, C)), because the loss compares each "
            f"frame with others; got {value.shape[1]} in {_shape(value)}. Channels come last and frames second: "
            "permute if yours are elsewhere."
        )
    return value


def not_empty(function: str, name: str, value: Tensor, layout: str) -> None:
    if value.numel() == 0:
        raise ValueError(
            f"{function}: `{name}` must have no empty dimension in {layout}; got {_shape(value)}. Skip empty batches "
            "before calling the loss."
        )


def relation_features(function: str, value) -> Tensor:
    """Check a student of token relations: floating (B, F, H, W, C) or (B, F, N, C), no empty dimension."""
    tensor(function, "student", value)
    floating(function, "student", value)
    layout = "(B, F, H, W, C) or (B, F, N, C)"
    if value.ndim not in (4, 5):
        raise ValueError(
            f"{function}: `student` must have shape {layout}: batch, frames, tokens of a frame, channels; got "
            f"{value.ndim} dimensions, {_shape(value)}. Tokens of all frames in one dimension unflatten to frames: "
            "student.unflatten(1, (F, N))."
        )
    not_empty(function, "student", value, layout)
    return value


def teacher_list(function: str, name: str, teachers) -> tuple[list[Tensor], list[str]]:
    """Return one tensor or a sequence of them as a list, and the name of each for messages."""
    if isinstance(teachers, Tensor):
        return [tensor(function, name, teachers)], [name]
    if not isinstance(teachers, Sequence):
        raise TypeError(
            f"{function}: `{name}` must be a tensor or a sequence of tensors, got {type(teachers).__name__}."
        )
    if not teachers:
        raise ValueError(f"{function}: `{name}` must hold at least one teacher, got an empty sequence.")
    names = [f"{name}[{m}]" for m in range(len(teachers))]
    return [tensor(function, one, teacher) for one, teacher in zip(names, teachers, strict=True)], names


def teacher(function: str, name: str, value: Tensor, student: Tensor, shape: tuple, layout: str, way_out: str) -> None:
    """Check a constant of the given shape on the student's device; `None` in the shape stands for any size."""
    floating(function, name, value)
    same_device(function, name, value, "student", student)
    detached(function, name, value)
    matches = value.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not matches:
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(
            f"{function}: `{name}` must have shape {layout} = ({expected}), got {_shape(value)}. {way_out}"
        )
    not_empty(function, name, value, layout)


def teacher_weights(function: str, weights, count: int | None) -> list[float] | None:
    """Return the fusion weights as floats: equal with sum 1 if None.

    `count` is the number of teachers, or None before it is known.
    """
    if weights is None:
        return None if count is None else [1 / count] * count
    if isinstance(weights, Tensor):
        raise TypeError(
            f"{function}: `teacher_weights` must be a sequence of Python floats, got a tensor (reading it would make the "
            "host wait for the device). Use teacher_weights.tolist() once, outside the training loop."
        )
    if not isinstance(weights, Sequence):
        raise TypeError(
            f"{function}: `teacher_weights` must be a sequence of floats, one for each teacher, or None for equal "
            f"weights; got {type(weights).__name__}."
        )
    if not weights or count not in (None, len(weights)):
        expected = "at least one" if count is None else count
        raise ValueError(
            f"{function}: `teacher_weights` must have one weight for each teacher: {expected} expected, got {len(weights)}."
        )
    return [number(function, f"teacher_weights[{m}]", w, minimum=0.0) for m, w in enumerate(weights)]


def number(
    function: str, name: str, value, minimum: float | None = None, above: float | None = None, infinite: bool = False
) -> float:
    """Check a Python number, which a bool is not: finite unless `infinite`, at least `minimum`, greater than `above`."""
    wanted = ("a number" if infinite else "a finite number") + (f" >= {minimum:g}" if minimum is not None else "")
    wanted += f" > {above:g}" if above is not None else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{function}: `{name}` must be {wanted}, got {type(value).__name__} {value!r}.")
    value = float(value)
    # A comparison, because math.isfinite breaks the graph of a compiled function with symbolic numbers.
    finite = -math.inf < value < math.inf or (infinite and value == math.inf)
    if not finite or (minimum is not None and value < minimum) or (above is not None and value <= above):
        raise ValueError(f"{function}: `{name}` must be {wanted}, got {value!r}.")
    return value


def scale(function: str, name: str, value, infinite: bool = False) -> float:
    """Check a positive number that others are measured by, such as a temperature: at least `SMALLEST_SCALE`."""
    value = number(function, name, value, above=0.0, infinite=infinite)
    if value < SMALLEST_SCALE:
        raise ValueError(
            f"{function}: `{name}` must be at least {SMALLEST_SCALE!r}, the smallest normal number of float32, in which losses "
            f"are computed: there a smaller one may count as 0, and its reciprocal overflows; got {value!r}. "
            f"Give a larger `{name}`, or scale what it is measured against."
        )
    return value


def integer(function: str, name: str, value) -> int:
    """Return an integer of any kind as an int; a bool, which Python counts among them, is no size."""
    try:
        if not isinstance(value, bool):
            return op.index(value)
    except TypeError:
        pass
    raise TypeError(f"{function}: `{name}` must be an int, got {type(value).__name__} {value!r}.")


def size(function: str, name: str, value) -> int:
    result = integer(function, name, value)
    if result < 1:
        raise ValueError(f"{function}: `{name}` must be at least 1, got {value!r}.")
    return result


def choice(function: str, name: str, value, choices: Sequence[str], way_out: str = "") -> str:
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{function}: `{name}` must be one of {expected}; got {value!r}.{way_out and ' ' + way_out}")
    return value


def weight_dtype(function: str, value) -> torch.dtype:
    """Check the type of weights that a function makes."""
    if value not in (torch.float32, torch.float64):
        raise TypeError(
            f"{function}: `dtype` must be torch.float32, or torch.float64 for the weights of a float64 student, in which types "
            f"losses are computed; got {value!r}."
        )
    return value


def device(function: str, value) -> torch.device | None:
    """Check the device of what a function makes; None, torch's default device, stays None."""
    if value is None or isinstance(value, torch.device):
        return value
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{function}: `device` must be a torch.device or the name of one, such as 'cpu', 'cuda' or 'cuda:0', or None for "
            f"torch's default device; got {value!r}. Give that of the student: student.device."
        ) from None


def weight_tensor(
    function: str, name: str, value, student: Tensor, shape: tuple, layout: str, way_out: str | None = None
) -> Tensor:
    """Check a constant tensor of weights: any real type, the given shape, on the student's device."""
    tensor(function, name, value)
    real(function, name, value)
    same_device(function, name, value, "student", student)
    detached(function, name, value)
    if tuple(value.shape) != shape:
        way_out = way_out or f"Use {name}.expand(...) or {name}.reshape(...) to bring it to that shape."
        raise ValueError(f"{function}: `{name}` must have shape {layout} = {shape}, got {_shape(value)}. {way_out}")
    return value


def nonnegative(function: str, name: str, value: Tensor) -> None:
    """Check that weights on the CPU are >= 0. On other devices reading them would make the host wait."""
    if value.device.type != "cpu" or not value.dtype.is_signed:
        return
    if value.is_floating_point() and value.itemsize == 1:
        value = value.float()  # torch compares no float8
    if bool((value < 0).any()):
        raise ValueError(
            f"{function}: `{name}` must be >= 0 everywhere, got a minimum of {value.min().item():g}. Clamp it: "
            f"{name}.clamp(min=0)."
        )
