"""Launcher of the C++ module for CPU tensors, which computes loss and gradient together, in tiles of pairs of tokens."""

from torch import Tensor

from ..core.native import address, described, module, threads
from ..core.numerics import accumulate_dtype, last_dimension_contiguous, non_finite_to_nan, reduce_videos
from ..core.registry import Implementation
from . import channel_grams, portable
from .options import RelationOptions
from .portable import backward, empty_residual


def forward(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the gradient of each video's own loss (B, F, N, C).

    Squares that products of channels compute faster are the portable backend's.
    """
    # The distances are symmetric, so only the symmetric part of the weights matters.
    weight = ((pair_weight + pair_weight.mT) / student.shape[2] ** 2).to(accumulate_dtype(student)).contiguous()
    if options.squared and channel_grams.is_faster(
        student, teacher, weight, options, needs_grad, module(student).build_info()["isa"]
    ):
        return portable.forward(student, teacher, pair_weight, options, needs_grad)
    student, teacher = map(last_dimension_contiguous, (student, teacher))
    losses = student.new_empty(len(student), dtype=weight.dtype)
    gradient = empty_residual(student, needs_grad)
    module(student).token_relation(
        described(student[:, :, None]),
        described(teacher[:, :, None]),
        (*student.shape[:2], 1, student.shape[2]),
        weight.data_ptr(),
        losses.data_ptr(),
        address(gradient) if needs_grad else None,
        margin=options.margin,
        squared=options.squared,
        cosine=options.cosine,
        clamps_student=options.clamps_student,
        clamps_teacher=options.clamps_teacher,
        **threads(),
    )
    return reduce_videos(non_finite_to_nan(losses), options.reduction), gradient


token_relation = Implementation(forward, backward, empty_residual)
