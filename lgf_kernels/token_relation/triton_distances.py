"""Distances of pairs of tiles, and blocks of coefficients for the gradient (`triton_kernels`)."""

import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.triton_blocks import exact, outer_strides
from . import triton_configs as configs
from .panels import Panel
from .triton_tiles import GROUP, Pairs, any_weight, block_index, gram, pair_of_tiles, pair_weights, reach, scaled


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_relation_distances(
    student,
    teacher,
    student_stride,
    teacher_stride,
    student_norms,
    teacher_norms,
    weight,
    margin,
    scale,
    sums,
    coefficients,
    video,
    frames,
    frame_tokens,
    first,
    end,
    C: tl.constexpr,
    TEACHER_C: tl.constexpr,
    OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    FRAMES: tl.constexpr,
    LARGE_FRAMES: tl.constexpr,
    INDEX: tl.constexpr,
    KEEP: tl.constexpr,
    SQUARED: tl.constexpr,
    CLAMP_STUDENT: tl.constexpr,
    CLAMP_TEACHER: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    ACC: tl.constexpr = sums.dtype.element_ty
    tokens = frames * frame_tokens
    tiles = tl.cdiv(tokens, TILE)
    row, column = pair_of_tiles(tl.program_id(0), first, end, tiles)
    if column >= tiles:
        return
    b = video + tl.program_id(1).to(tl.int64)
    n = tl.arange(0, TILE)
    i, j = row * TILE + n, column * TILE + n
    sums += b * block_index(tiles, tiles, 0, tiles) + block_index(row, column, 0, tiles)
    block = tl.program_id(1) * block_index(end, end, first, tiles) + block_index(row, column, first, tiles)
    coefficients += block * (TILE * TILE)
    student_stride, teacher_stride = outer_strides(student_stride, C), outer_strides(teacher_stride, TEACHER_C)
    student += b * student_stride[0]
    teacher += b * teacher_stride[0]
    student_norms += b * tokens
    teacher_norms += b * tokens
    margin, scale = exact(margin, ACC), exact(scale, ACC)

    if any_weight(weight, row, column, frames, frame_tokens, TILE, LARGE_FRAMES):
        s_m = gram(teacher, teacher_stride, i, j, tokens, frame_tokens, TEACHER_C, BLOCK_C, TEACHER_OPERAND, ACC, INDEX)
        s_m = scaled(s_m, teacher_norms, i, j, tokens)
        s_z = gram(student, student_stride, i, j, tokens, frame_tokens, C, BLOCK_C, OPERAND, ACC, INDEX)
        s_z = scaled(s_z, student_norms, i, j, tokens)
        # Times 0, so that -inf becomes NaN.
        if CLAMP_TEACHER:
            s_m = tl.where(s_m < 0, s_m * 0, s_m)
        d = (tl.where(s_z < 0, s_z * 0, s_z) if CLAMP_STUDENT else s_z) - s_m

        w = pair_weights(weight, row, column, frames, frame_tokens, TILE, LARGE_FRAMES) * scale
        # 0 for a difference within the margin, but not for NaN.
        w = tl.where(tl.abs(d) <= margin, 0.0, w)
        excess = tl.abs(d) - margin
        total = tl.sum(tl.sum(tl.where(w == 0, 0.0, w * (excess * excess if SQUARED else excess)), 1), 0)
        tl.store(sums, tl.where(row == column, total, 2 * total))
        if KEEP:
            w = tl.where(d > 0, w, -w)
            g = 2 * w * (2 * excess) if SQUARED else 2 * w
            g = tl.where(w == 0, 0.0, g + (d - d))  # NaN where d is not finite
            if CLAMP_STUDENT:
                g = tl.where(s_z < 0, 0.0, g)
            g = scaled(g, student_norms, i, j, tokens)
            tl.store(coefficients + ((n * TILE)[:, None] + n[None, :]), g)
    else:
        tl.store(sums, 0.0)
        if KEEP:
            row_begin, row_end = reach(weight, row, frames, frame_tokens, TILE, FRAMES)
            column_begin, column_end = reach(weight, column, frames, frame_tokens, TILE, FRAMES)
            read = ((row_begin <= column) & (column < row_end)) | ((column_begin <= row) & (row < column_end))
            if read:
                tl.store(coefficients + ((n * TILE)[:, None] + n[None, :]), tl.zeros((TILE, TILE), ACC))


def distances(pairs: Pairs, panel: Panel, sums: Tensor, coefficients: Tensor | None) -> None:
    """Write the sum of each pair of tiles of the panel and, unless None, their coefficients.

    Videos are told by their numbers: a slice of a tensor has another alignment, for which Triton compiles anew.
    """
    _, frames, N, C = pairs.student.shape
    videos = range(len(sums))[panel.videos]
    couples, width = triton.cdiv(panel.end - panel.first, 2), 2 * pairs.tiles - panel.first - panel.end + 1
    launch.run_configured(
        lgf_relation_distances,
        lambda config: (triton.cdiv(couples, GROUP.value) * GROUP.value * width, len(videos)),
        configs.distances(max(C, pairs.teacher.shape[-1]), pairs.widest, launch.architecture(pairs.student.device)),
        pairs.student,
        pairs.teacher,
        launch.outer_strides(pairs.student),
        launch.outer_strides(pairs.teacher),
        pairs.student_norms,
        pairs.teacher_norms,
        pairs.weight,
        launch.exact(pairs.options.margin),
        launch.exact(1 / N**2),
        sums,
        sums if coefficients is None else coefficients,
        videos.start,
        frames,
        N,
        panel.first,
        panel.end,
        C=C,
        TEACHER_C=pairs.teacher.shape[-1],
        OPERAND=launch.triton_type(pairs.operands[0]),
        TEACHER_OPERAND=launch.triton_type(pairs.operands[1]),
        FRAMES=pairs.padded_frames,
        LARGE_FRAMES=pairs.tile <= N,
        INDEX=pairs.index,
        KEEP=coefficients is not None,
        SQUARED=pairs.options.squared,
        CLAMP_STUDENT=pairs.options.clamps_student,
        CLAMP_TEACHER=pairs.options.clamps_teacher,
        TILE=pairs.tile,
        enable_fp_fusion=False,  # fused, the difference of two equal products would be a rounding error with a sign
    )
