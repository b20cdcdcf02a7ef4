"""Gradient of token relations: products of coefficients with features, and their projection (`triton_kernels`)."""

import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.triton_blocks import SHORT, dot, load_channels, outer_strides
from . import panels
from . import triton_configs as configs
from .panels import Panel
from .triton_tiles import Pairs, block_index, reach, token_offsets


@triton.jit
def _add_products(
    acc,
    coefficients,
    video,
    stride,
    tile,
    begin,
    end,
    first,
    tiles,
    tokens,
    frame_tokens,
    c0,
    TRANSPOSED: tl.constexpr,
    C: tl.constexpr,
    OPERAND: tl.constexpr,
    INDEX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return acc + sum_j g[i, j] z_j over the tiles begin .. end - 1, all before `tile` if TRANSPOSED, else none."""
    PARTS: tl.constexpr = TILE // BLOCK_K
    n, k = tl.arange(0, TILE), tl.arange(0, BLOCK_K)
    for step in range(begin * PARTS, end * PARTS):
        other = step // PARTS
        part = step % PARTS * BLOCK_K + k
        if TRANSPOSED:
            block = coefficients + block_index(other, tile, first, tiles) * (TILE * TILE)
            g = tl.trans(tl.load(block + ((part * TILE)[:, None] + n[None, :])))
        else:
            block = coefficients + block_index(tile, other, first, tiles) * (TILE * TILE)
            g = tl.load(block + ((n * TILE)[:, None] + part[None, :]))
        j = other * TILE + part
        z = load_channels(video, token_offsets(j, frame_tokens, stride, INDEX), j < tokens, c0, C, BLOCK_C)
        acc = dot(g, z, acc, OPERAND)
    return acc


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_relation_products(
    coefficients,
    student,
    stride,
    weight,
    out,
    out_stride,
    video,
    part_video,
    frames,
    frame_tokens,
    first,
    end,
    splits,
    C: tl.constexpr,
    OPERAND: tl.constexpr,
    FRAMES: tl.constexpr,
    INDEX: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write out[split, b, i] = sum_j g[i, j] z_j over the blocks of a panel, for tiles from its first row on."""
    ACC: tl.constexpr = out.dtype.element_ty
    tokens = frames * frame_tokens
    tiles = tl.cdiv(tokens, TILE)
    tile = first + tl.program_id(0)
    split = tl.program_id(1) % splits
    c0 = tl.program_id(1) // splits * BLOCK_C
    b = tl.program_id(2).to(tl.int64)
    coefficients += b * block_index(end, end, first, tiles) * (TILE * TILE)
    stride, out_stride = outer_strides(stride, C), outer_strides(out_stride, C)
    student += (video + b) * stride[0]

    begin, last = reach(weight, tile, frames, frame_tokens, TILE, FRAMES)
    span = tl.cdiv(tiles - first, splits)
    begin = tl.maximum(begin, first + split * span)
    last = tl.minimum(last, first + (split + 1) * span)
    last = tl.minimum(last, tl.where(tile < end, tiles, end))
    middle = tl.minimum(tl.maximum(tile, begin), last)
    acc = tl.zeros((TILE, BLOCK_C), ACC)
    acc = _add_products(
        acc, coefficients, student, stride, tile, begin, middle, first, tiles, tokens, frame_tokens, c0,
        True, C, OPERAND, INDEX, TILE, BLOCK_K, BLOCK_C,
    )  # fmt: skip
    acc = _add_products(
        acc, coefficients, student, stride, tile, middle, last, first, tiles, tokens, frame_tokens, c0,
        False, C, OPERAND, INDEX, TILE, BLOCK_K, BLOCK_C,
    )  # fmt: skip
    i, c = tile * TILE + tl.arange(0, TILE), c0 + tl.arange(0, BLOCK_C)
    out += split * out_stride[0] + (part_video + b) * out_stride[1]
    places = out + ((i.to(tl.int64) * C)[:, None] + c[None, :])
    mask = (i < tokens)[:, None] & (c < C)[None, :]
    if ADD:
        acc += tl.load(places, mask=mask, other=0.0)
    tl.store(places, acc, mask=mask)


@triton.jit
def _sum_of_parts(parts, part_stride, splits, places, mask, c0, C: tl.constexpr, BLOCK_C: tl.constexpr):
    total = load_channels(parts, places, mask, c0, C, BLOCK_C)
    for split in range(1, splits):
        total += load_channels(parts + split * part_stride[0], places, mask, c0, C, BLOCK_C)
    return total


@triton.jit(do_not_specialize=launch.FRAME_SIZES)
def lgf_relation_project(
    parts,
    part_stride,
    student,
    stride,
    norms,
    gradient,
    video,
    part_video,
    frames,
    frame_tokens,
    splits,
    C: tl.constexpr,
    INDEX: tl.constexpr,
    COSINE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the sum of the parts to the gradient (which may be the only part), for cosine without its component along z^."""
    ACC: tl.constexpr = gradient.dtype.element_ty
    tokens = frames * frame_tokens
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = i < tokens
    stride, part_stride = outer_strides(stride, C), outer_strides(part_stride, C)
    b = video + tl.program_id(1).to(tl.int64)
    student += b * stride[0]
    parts += (part_video + tl.program_id(1).to(tl.int64)) * part_stride[1]
    gradient += b * tokens * C
    rows = token_offsets(i, frame_tokens, stride, INDEX)
    places = i.to(tl.int64) * C
    r = tl.load(norms + b * tokens + i, mask=mask, other=0.0)
    along = tl.zeros((ROWS,), ACC)
    if COSINE:
        for c0 in range(0, C, BLOCK_C):
            unit = load_channels(student, rows, mask, c0, C, BLOCK_C).to(ACC) * r[:, None]
            along += tl.sum(_sum_of_parts(parts, part_stride, splits, places, mask, c0, C, BLOCK_C) * unit, 1)
    # A norm clamped to EPS is a constant: there is no projection.
    along = tl.where(r < SHORT, along, 0.0)
    for c0 in range(0, C, BLOCK_C):
        total = _sum_of_parts(parts, part_stride, splits, places, mask, c0, C, BLOCK_C)
        if COSINE:
            total -= along[:, None] * (load_channels(student, rows, mask, c0, C, BLOCK_C).to(ACC) * r[:, None])
        c = c0 + tl.arange(0, BLOCK_C)
        tl.store(gradient + (places[:, None] + c[None, :]), total, mask=mask[:, None] & (c < C)[None, :])


def products(pairs: Pairs, panel: Panel, coefficients: Tensor, gradient: Tensor) -> Tensor:
    """Add the panel's part of sum_j g[i, j] z_j to the gradient.

    If one panel is all, return the sums in several parts instead, where that fills the GPU better.
    """
    videos, frames, N, C = range(len(gradient))[panel.videos], *pairs.student.shape[1:]
    rows = pairs.tiles - panel.first
    candidates = configs.products(C, coefficients.dtype, pairs.tile, launch.architecture(gradient.device))
    programs = rows * len(videos) * triton.cdiv(C, candidates[0].BLOCK_C)
    side_by_side = launch.multiprocessors(gradient.device)
    parts = panels.room_for_parts(gradient, panel, pairs.tiles, programs, side_by_side)
    launch.run_configured(
        lgf_relation_products,
        lambda config: (rows, len(parts) * triton.cdiv(C, config["BLOCK_C"]), len(videos)),
        # Timing repeats the kernel, which must not add to the gradient more than once.
        candidates if panel.first == 0 else candidates[:1],
        coefficients,
        pairs.student,
        launch.outer_strides(pairs.student),
        pairs.weight,
        parts,
        launch.outer_strides(parts),
        videos.start,
        panels.videos_of(parts, panel).start,
        frames,
        N,
        panel.first,
        panel.end,
        len(parts),
        C=C,
        OPERAND=launch.triton_type(coefficients.dtype),
        FRAMES=pairs.padded_frames,
        INDEX=pairs.index,
        ADD=panel.first > 0,
        TILE=pairs.tile,
    )
    return parts


def project(pairs: Pairs, panel: Panel, parts: Tensor, gradient: Tensor) -> None:
    videos, frames, N, C = range(len(gradient))[panel.videos], *pairs.student.shape[1:]
    channels = min(1024, max(16, triton.next_power_of_2(C)))
    rows = 4096 // channels
    launch.run(
        lgf_relation_project,
        (triton.cdiv(frames * N, rows), len(videos)),
        parts,
        launch.outer_strides(parts),
        pairs.student,
        launch.outer_strides(pairs.student),
        pairs.student_norms,
        gradient,
        videos.start,
        panels.videos_of(parts, panel).start,
        frames,
        N,
        len(parts),
        C=C,
        INDEX=pairs.index,
        COSINE=pairs.options.cosine,
        ROWS=rows,
        BLOCK_C=channels,
        num_warps=4,
    )
