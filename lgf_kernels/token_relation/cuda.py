"""Launchers of the CUDA module for token relation distances, one panel of coefficients after the other."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.native import described, module, reciprocal_norms, stream
from ..core.numerics import accumulate_dtype, last_dimension_contiguous, non_finite_to_nan, reduce_videos
from ..core.registry import Implementation
from . import panels
from .options import RelationOptions
from .panels import Panel, backward
from .portable import empty_residual

#: Scale of the largest coefficients in float16: coefficients down to 2^-26 of it are normal numbers.
LARGEST = 2.0**12


class Pairs(NamedTuple):
    """The arguments of the kernels. Tensors of tokens are (B, 1, 1, n, C), or (B, n) for one number a token.

    g[i, j] = 2 w[i, j] sign(d[i, j]) p_i p_j        dz_i = o_i sum_j g[i, j] x_j        "l2": 2 d for sign(d)

    float16 lacks the range of a gradient: there p (`coefficient_norms`), x (`factors`) and o
    (`row_scale`) contain a power of 2 for each token. Otherwise p is the reciprocal norm, x the
    student, and o None.
    """

    student: Tensor
    teacher: Tensor
    factors: Tensor
    student_norms: Tensor
    teacher_norms: Tensor
    coefficient_norms: Tensor
    row_scale: Tensor | None
    weight: Tensor
    frame_tokens: int
    options: RelationOptions
    tile: int
    coefficient_dtype: str
    side_by_side: int
    channels: int

    @property
    def tiles(self) -> int:
        return -(-self.student.shape[3] // self.tile)

    @property
    def video(self) -> tuple[int, int, int, int]:
        return len(self.student), len(self.weight), self.frame_tokens, self.weight.data_ptr()

    def of(self, videos: slice) -> "Pairs":
        of_all = zip(self._fields[:7], self[:7], strict=True)
        return self._replace(**{name: tensor[videos] for name, tensor in of_all if tensor is not None})


def forward(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the gradient of each video's own loss (B, F, N, C)."""
    accumulate = accumulate_dtype(student)
    gradient = empty_residual(student, needs_grad)
    with torch.cuda.device_of(student):
        weight = ((pair_weight + pair_weight.mT) / 2).to(accumulate).contiguous()
        pairs = described_pairs(student, teacher, weight, options)
        whole = Panel(slice(0, len(student)), 0, pairs.tiles)
        sums = student.new_zeros((len(student), whole.blocks(pairs.tiles)), dtype=accumulate)
        kernels = panels.Kernels(distances, products, project)
        panels.run(kernels, pairs, getattr(torch, pairs.coefficient_dtype), sums, gradient if needs_grad else None)
    return reduce_videos(non_finite_to_nan(sums.sum(1)), options.reduction), gradient


def described_pairs(student: Tensor, teacher: Tensor, weight: Tensor, options: RelationOptions) -> Pairs:
    frame_tokens = student.shape[2]
    student, teacher = flattened_tokens(student), flattened_tokens(teacher)
    norms = [norms_of(features, weight.dtype) for features in (student, teacher)]
    r, q = norms if options.cosine else map(torch.ones_like, norms)
    cut = module(student).relation_cut(described(student), described(teacher), student.get_device())
    _, coefficient_dtype, _, _ = cut
    x, p, o = student, r, None
    if coefficient_dtype == "float16":
        x, p, o = within_float16(student, norms, weight, frame_tokens, options)
    return Pairs(student, teacher, x, r, q, p, o, weight, frame_tokens, options, *cut)


def flattened_tokens(features: Tensor) -> Tensor:
    """Return (B, 1, 1, n, C), the tokens of all frames in one dimension, copied where the strides require it."""
    return last_dimension_contiguous(features.flatten(1, 2))[:, None, None]


def norms_of(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the reciprocal norms (B, n) of features (B, 1, 1, n, C)."""
    norms = features.new_empty((len(features), features.shape[3]), dtype=dtype)
    reciprocal_norms(features, norms)
    return norms


def within_float16(
    student: Tensor, norms: list[Tensor], weight: Tensor, frame_tokens: int, options: RelationOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, p and o of `Pairs`, in the range of float16 for all norms and weights.

        x_i = b_i z_i            b_i a power of 2, so that ||x_i|| is 1 up to a factor of 2
        p_i = r_i / b_i sqrt(a)  a scales the largest 2 w to LARGEST
        o_i = b_i / a

    x is exact for numbers from 2^-14 on. With "dot" x is z, and for "l2" a scales the largest 2 w times the largest
    difference that the norms of the video allow; with cosine that is 2, which LARGEST leaves room for.
    """
    r, q = norms
    a = LARGEST * frame_tokens**2 / (2 * weight.max().clamp(min=1e-20))
    if not options.cosine:
        if options.squared:
            a = a / (2 * (r.amin(1, keepdim=True) ** -2 + q.amin(1, keepdim=True) ** -2))
        scale = a.expand_as(r)
        return student, scale.sqrt().contiguous(), scale.reciprocal().contiguous()
    b = torch.exp2(torch.log2(r).round())
    x = torch.mul(student, b[:, None, None, :, None], out=student.new_empty(student.shape))
    return x, r / b * a.sqrt(), b / a


def distances(pairs: Pairs, panel: Panel, sums: Tensor, coefficients: Tensor | None) -> None:
    pairs, sums = pairs.of(panel.videos), sums[panel.videos]
    module(sums).relation_distances(
        described(pairs.student),
        described(pairs.teacher),
        pairs.video,
        tuple(norms.data_ptr() for norms in (pairs.student_norms, pairs.teacher_norms, pairs.coefficient_norms)),
        (panel.first, panel.end),
        sums.data_ptr(),
        sums.stride(0),
        None if coefficients is None else coefficients.data_ptr(),
        coefficient_dtype=pairs.coefficient_dtype,
        margin=pairs.options.margin,
        squared=pairs.options.squared,
        floors=tuple(
            0.0 if clamps else -math.inf for clamps in (pairs.options.clamps_student, pairs.options.clamps_teacher)
        ),
        scale=1 / pairs.frame_tokens**2,
        **stream(sums),
    )


def products(pairs: Pairs, panel: Panel, coefficients: Tensor, gradient: Tensor) -> Tensor:
    pairs = pairs.of(panel.videos)
    blocks = (pairs.tiles - panel.first) * len(pairs.student) * -(-gradient.shape[-1] // pairs.channels)
    parts = panels.room_for_parts(gradient, panel, pairs.tiles, blocks, pairs.side_by_side)
    module(gradient).relation_products(
        described(pairs.factors),
        pairs.video,
        coefficients.data_ptr(),
        coefficient_dtype=pairs.coefficient_dtype,
        rows=(panel.first, panel.end),
        parts=described_parts(parts, panel),
        **stream(gradient),
    )
    return parts


def project(pairs: Pairs, panel: Panel, parts: Tensor, gradient: Tensor) -> None:
    pairs = pairs.of(panel.videos)
    module(gradient).relation_project(
        described(pairs.student),
        pairs.video,
        pairs.student_norms.data_ptr() if pairs.options.cosine else None,
        None if pairs.row_scale is None else pairs.row_scale.data_ptr(),
        described_parts(parts, panel),
        gradient[panel.videos].data_ptr(),
        **stream(gradient),
    )


def described_parts(parts: Tensor, panel: Panel) -> tuple[int, int, int]:
    """Describe the parts of a panel for the module: address, number, stride."""
    return parts[:, panels.videos_of(parts, panel)].data_ptr(), len(parts), parts.stride(0)


token_relation = Implementation(forward, backward, empty_residual)
