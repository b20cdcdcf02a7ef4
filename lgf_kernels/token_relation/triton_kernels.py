"""Token relation distances, and their gradient from stored coefficients of half of all pairs.

    d[i, j] = < z_i, z_j > r_i r_j - < m_i, m_j > q_i q_j                     r, q: reciprocal norms
    loss_b  = sum_{i, j} w[i, j] relu( |d[i, j]| - margin )                   w[i, j] = c[f_i, f_j] / N^2
    g[i, j] = 2 w[i, j] sign(d[i, j]) 1[|d[i, j]| > margin] r_i r_j
    dz_i    = sum_j g[i, j] z_j, less its part along z_i                      (I - z^_i z^_i^T) dz^_i / ||z_i||

Everything with two indices is symmetric. The n tokens of a video are cut into tiles, tiles[0] .. tiles[T-1], and one
program takes a pair of tiles (row, column >= row):

    lgf_relation_distances   a pair: d, its part of the loss and, for a gradient, the block g, in the type of the features
    lgf_relation_products    a tile: sum_j g[i, j] z_j over the blocks of its row, and transposed over those of its column
    lgf_relation_project     the part along z_i is taken off

With C channels and C' of the teacher this costs n^2 (C + C') operations for half of all pairs and 2 n^2 C for the
products, and scratch for n^2 / 2 numbers: 1.06 GB at n = 32,400 in bfloat16. Where that exceeds the budget
(`panels.scratch_bytes`) the rows are taken in panels, each stored, multiplied and overwritten by the next: the same
operations in any budget, and only the gradient's accumulators are read and written once a panel. 60 MiB make 18 panels
of that video, and with the gradient itself, in float32, 96 MB in all. Storing nothing, that is making all of d again
where it is multiplied, would cost n^2 (C + C') more, and accumulators of more than 256 channels leave no registers to do
it. The products are made here and not by a library's one matrix product so that weights of 0 save them too.

Why g holds the norms of both tokens: it stays symmetric, so each block serves twice, and rounding to bfloat16 errs
independently in each pair, which averages out. Rounding c, or r_j z_j, would err alike in all pairs of a token.

Tiles run on over the ends of frames: 150 tokens would fill two tiles of 128 to 59 %, and pairs of them to a third. Pairs
of tiles all of whose weights are 0 are left out, for which the weights are read on the device.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import triton_launch as launch
from ..core.numerics import accumulate_dtype, non_finite_to_nan, reduce_videos
from ..core.registry import Implementation
from ..core.triton_blocks import SHORT, dot, exact, load_channels
from ..core.triton_norms import reciprocal_norms
from . import panels
from . import triton_configs as configs
from .panels import Panel, backward
from .portable import empty_residual

#: Rows of tiles side by side in launch order, so that the columns they share are read from the L2 cache.
GROUP: tl.constexpr = tl.constexpr(4)


@triton.jit
def _block_index(row, column, first, tiles):
    """Where the block (row, column) stands among those of rows first, first + 1, ...: row by row, from the diagonal on."""
    row = tl.cast(row, tl.int64)
    return (row - first) * (2 * tiles - first - row + 1) // 2 + (column - row)


@triton.jit
def _pair_of_tiles(program, first, end, tiles):
    """The pair of tiles of a program, among those with first <= row < end and column >= row.

    The a-th row is followed by the a-th from the end: all of these couples are equally long, and a rectangle of programs
    covers them. Programs too many get column = tiles.
    """
    width = 2 * tiles - first - end + 1
    a = program // (GROUP * width) * GROUP + program % GROUP
    step = program % (GROUP * width) // GROUP
    top, bottom = first + a, end - 1 - a
    upper = step < tiles - top
    row = tl.where(upper, top, bottom)
    column = row + tl.where(upper, step, step - (tiles - top))
    wanted = (top < bottom) | ((top == bottom) & upper)
    return row, tl.where(wanted, column, tiles)


@triton.jit
def _offsets(token, frame_tokens, stride, INDEX: tl.constexpr):
    """Of tokens counted through a video, from its first element."""
    return (token // frame_tokens).to(INDEX) * stride[1] + (token % frame_tokens).to(INDEX) * stride[2]


@triton.jit
def _gram(video, stride, i, j, tokens, frame_tokens, C: tl.constexpr, BLOCK_C: tl.constexpr, OPERAND: tl.constexpr,
          ACC: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """< f_i, f_j > of the tokens i and j; 0 past the last token."""
    rows, columns = _offsets(i, frame_tokens, stride, INDEX), _offsets(j, frame_tokens, stride, INDEX)
    z = tl.zeros((i.shape[0], j.shape[0]), ACC)
    for c0 in range(0, C, BLOCK_C):
        a = load_channels(video, rows, i < tokens, c0, C, BLOCK_C)
        b = load_channels(video, columns, j < tokens, c0, C, BLOCK_C)
        z = dot(a, tl.trans(b), z, OPERAND)
    return z


@triton.jit
def _scaled(z, reciprocal_norms, i, j, tokens):
    z *= tl.load(reciprocal_norms + i, mask=i < tokens, other=0.0)[:, None]
    return z * tl.load(reciprocal_norms + j, mask=j < tokens, other=0.0)[None, :]


@triton.jit
def _corner_weights(weight, row, column, frames, frame_tokens, TILE: tl.constexpr):
    """c of the frames of the first and last tokens of both tiles."""
    last = frames * frame_tokens - 1
    f, f_last = row * TILE // frame_tokens, tl.minimum(row * TILE + TILE - 1, last) // frame_tokens
    g, g_last = column * TILE // frame_tokens, tl.minimum(column * TILE + TILE - 1, last) // frame_tokens
    near, far = weight + f * frames, weight + f_last * frames
    return tl.load(near + g), tl.load(near + g_last), tl.load(far + g), tl.load(far + g_last)


@triton.jit
def _weights(weight, row, column, frames, frame_tokens, TILE: tl.constexpr, LARGE_FRAMES: tl.constexpr):
    """c[f_i, f_j] (TILE, TILE). Tiles no larger than a frame touch two at most: then four numbers tell everything."""
    i, j = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE)
    if LARGE_FRAMES:
        near_near, near_far, far_near, far_far = _corner_weights(weight, row, column, frames, frame_tokens, TILE)
        i_near = i < (row * TILE // frame_tokens + 1) * frame_tokens
        j_near = j < (column * TILE // frame_tokens + 1) * frame_tokens
        # Rows first: a thread holds a few of them, but of the columns a quarter.
        near, far = tl.where(i_near, near_near, far_near), tl.where(i_near, near_far, far_far)
        return tl.where(j_near[None, :], near[:, None], far[:, None])
    else:
        f, g = i // frame_tokens, j // frame_tokens
        mask = (f < frames)[:, None] & (g < frames)[None, :]
        return tl.load(weight + f[:, None] * frames + g[None, :], mask=mask, other=0.0)


@triton.jit
def _any_weight(weight, row, column, frames, frame_tokens, TILE: tl.constexpr, LARGE_FRAMES: tl.constexpr):
    if LARGE_FRAMES:
        a, b, c, d = _corner_weights(weight, row, column, frames, frame_tokens, TILE)
        return (a != 0) | (b != 0) | (c != 0) | (d != 0)
    else:
        w = _weights(weight, row, column, frames, frame_tokens, TILE, LARGE_FRAMES)
        return tl.sum(tl.sum((w != 0).to(tl.int32), 1), 0) > 0


@triton.jit
def _reach(weight, tile, frames, frame_tokens, TILE: tl.constexpr, FRAMES: tl.constexpr):
    """Tiles begin .. end - 1: from the first to the last that has a token in a frame of weight towards this tile's."""
    g = tl.arange(0, FRAMES)
    tokens = frames * frame_tokens
    begin, end = tokens, 0
    for f in range(tile * TILE // frame_tokens, tl.minimum(tile * TILE + TILE - 1, tokens - 1) // frame_tokens + 1):
        used = tl.load(weight + f * frames + g, mask=g < frames, other=0.0) != 0
        begin = tl.minimum(begin, tl.min(tl.where(used, g * frame_tokens, tokens), 0))
        end = tl.maximum(end, tl.max(tl.where(used, (g + 1) * frame_tokens, 0), 0))
    return begin // TILE, tl.cdiv(end, TILE)


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
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    ACC: tl.constexpr = sums.dtype.element_ty
    tokens = frames * frame_tokens
    tiles = tl.cdiv(tokens, TILE)
    row, column = _pair_of_tiles(tl.program_id(0), first, end, tiles)
    if column >= tiles:
        return
    b = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, TILE)
    i, j = row * TILE + n, column * TILE + n
    sums += b * _block_index(tiles, tiles, 0, tiles) + _block_index(row, column, 0, tiles)
    block = b * _block_index(end, end, first, tiles) + _block_index(row, column, first, tiles)
    coefficients += block * (TILE * TILE)
    student += b * student_stride[0]
    teacher += b * teacher_stride[0]
    student_norms += b * tokens
    teacher_norms += b * tokens
    margin, scale = exact(margin, ACC), exact(scale, ACC)

    if _any_weight(weight, row, column, frames, frame_tokens, TILE, LARGE_FRAMES):
        s_m = _gram(
            teacher, teacher_stride, i, j, tokens, frame_tokens, TEACHER_C, BLOCK_C, TEACHER_OPERAND, ACC, INDEX
        )
        s_m = _scaled(s_m, teacher_norms, i, j, tokens)
        s_z = _gram(student, student_stride, i, j, tokens, frame_tokens, C, BLOCK_C, OPERAND, ACC, INDEX)
        d = _scaled(s_z, student_norms, i, j, tokens) - s_m

        w = _weights(weight, row, column, frames, frame_tokens, TILE, LARGE_FRAMES) * scale
        # The weight with the sign of the difference; 0 where that is forgiven, which a NaN is not.
        w = tl.where(tl.abs(d) <= margin, 0.0, tl.where(d > 0, w, -w))
        total = tl.sum(tl.sum(tl.where(w == 0, 0.0, tl.abs(w) * (tl.abs(d) - margin)), 1), 0)
        tl.store(sums, tl.where(row == column, total, 2 * total))
        if KEEP:
            g = tl.where(w == 0, 0.0, 2 * w + (d - d))  # NaN where d is not finite
            g = _scaled(g, student_norms, i, j, tokens)
            tl.store(coefficients + ((n * TILE)[:, None] + n[None, :]), g)
    else:
        tl.store(sums, 0.0)
        if KEEP:
            row_begin, row_end = _reach(weight, row, frames, frame_tokens, TILE, FRAMES)
            column_begin, column_end = _reach(weight, column, frames, frame_tokens, TILE, FRAMES)
            read = ((row_begin <= column) & (column < row_end)) | ((column_begin <= row) & (row < column_end))
            if read:
                tl.store(coefficients + ((n * TILE)[:, None] + n[None, :]), tl.zeros((TILE, TILE), ACC))


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
    """acc + sum_j g[i, j] z_j over the tiles begin .. end - 1, which lie before the tile if TRANSPOSED, else not."""
    PARTS: tl.constexpr = TILE // BLOCK_K
    n, k = tl.arange(0, TILE), tl.arange(0, BLOCK_K)
    for step in range(begin * PARTS, end * PARTS):
        other = step // PARTS
        part = step % PARTS * BLOCK_K + k
        if TRANSPOSED:
            block = coefficients + _block_index(other, tile, first, tiles) * (TILE * TILE)
            g = tl.trans(tl.load(block + ((part * TILE)[:, None] + n[None, :])))
        else:
            block = coefficients + _block_index(tile, other, first, tiles) * (TILE * TILE)
            g = tl.load(block + ((n * TILE)[:, None] + part[None, :]))
        j = other * TILE + part
        z = load_channels(video, _offsets(j, frame_tokens, stride, INDEX), j < tokens, c0, C, BLOCK_C)
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
    """out[split, b, i] = sum_j g[i, j] z_j over the blocks of a panel, for tiles from its first row on."""
    ACC: tl.constexpr = out.dtype.element_ty
    tokens = frames * frame_tokens
    tiles = tl.cdiv(tokens, TILE)
    tile = first + tl.program_id(0)
    split = tl.program_id(1) % splits
    c0 = tl.program_id(1) // splits * BLOCK_C
    b = tl.program_id(2).to(tl.int64)
    coefficients += b * _block_index(end, end, first, tiles) * (TILE * TILE)
    student += b * stride[0]

    begin, last = _reach(weight, tile, frames, frame_tokens, TILE, FRAMES)
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
    out += split * out_stride[0] + b * out_stride[1]
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
    frames,
    frame_tokens,
    splits,
    C: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gradient = the sum of the parts, less what of it lies along z^. A part may be the gradient itself."""
    ACC: tl.constexpr = gradient.dtype.element_ty
    tokens = frames * frame_tokens
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = i < tokens
    b = tl.program_id(1).to(tl.int64)
    student += b * stride[0]
    rows = _offsets(i, frame_tokens, stride, INDEX)
    places = (b * tokens + i) * C
    r = tl.load(norms + b * tokens + i, mask=mask, other=0.0)
    along = tl.zeros((ROWS,), ACC)
    for c0 in range(0, C, BLOCK_C):
        unit = load_channels(student, rows, mask, c0, C, BLOCK_C).to(ACC) * r[:, None]
        along += tl.sum(_sum_of_parts(parts, part_stride, splits, places, mask, c0, C, BLOCK_C) * unit, 1)
    # A vector so short that its norm counts as EPS is divided by a constant, and nothing is projected.
    along = tl.where(r < SHORT, along, 0.0)
    for c0 in range(0, C, BLOCK_C):
        unit = load_channels(student, rows, mask, c0, C, BLOCK_C).to(ACC) * r[:, None]
        total = _sum_of_parts(parts, part_stride, splits, places, mask, c0, C, BLOCK_C)
        c = c0 + tl.arange(0, BLOCK_C)
        tl.store(gradient + (places[:, None] + c[None, :]), total - along[:, None] * unit,
                 mask=mask[:, None] & (c < C)[None, :])  # fmt: skip


class Pairs(NamedTuple):
    """What the kernels take of a call: features (B, F, N, C), reciprocal norms (B, F, N), symmetric weights (F, F)."""

    student: Tensor
    teacher: Tensor
    student_norms: Tensor
    teacher_norms: Tensor
    weight: Tensor
    margin: float

    @property
    def accumulate(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def operands(self) -> list[torch.dtype]:
        return [launch.operand_type(features.dtype, self.accumulate) for features in (self.student, self.teacher)]

    @property
    def widest(self) -> torch.dtype:
        return max(self.operands, key=lambda operand: operand.itemsize)

    @property
    def tile(self) -> int:
        return configs.relation_tile(self.widest, self.student.shape[2])

    @property
    def tiles(self) -> int:
        _, frames, N, _ = self.student.shape
        return triton.cdiv(frames * N, self.tile)

    @property
    def padded_frames(self) -> int:
        """A power of two, and the same for nearly all videos: a kernel is compiled for it."""
        return max(64, triton.next_power_of_2(self.student.shape[1]))

    @property
    def index(self) -> tl.dtype:
        """Wide enough for every offset within a video."""
        return launch.index_type(self.student.unsqueeze(1), self.teacher.unsqueeze(1))

    def of(self, videos: slice) -> "Pairs":
        return self._replace(**{name: tensor[videos] for name, tensor in zip(self._fields[:4], self[:4], strict=True)})


def forward(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, margin: float, reduction: str, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and for backward the gradient of each video's own loss (B, F, N, C), if needed."""
    student, teacher = launch.usable([student, teacher])
    accumulate = accumulate_dtype(student)
    weight = ((pair_weight + pair_weight.mT) / 2).to(accumulate).contiguous()
    with launch.on_device_of(student):
        norms = reciprocal_norms([student.unsqueeze(3), teacher.unsqueeze(3)], "cosine")
        pairs = Pairs(student, teacher, *norms, weight, margin)
        whole = Panel(slice(0, len(student)), 0, pairs.tiles)
        sums = student.new_empty((len(student), whole.blocks(pairs.tiles)), dtype=accumulate)
        gradient = empty_residual(student, needs_grad)
        dtype = launch.operand_type(student.dtype, accumulate, by_gradient=True)
        kernels = panels.Kernels(distances, products, project)
        panels.run(kernels, pairs, dtype, sums, gradient if needs_grad else None)
    return reduce_videos(non_finite_to_nan(sums.sum(1)), reduction), gradient


def distances(pairs: Pairs, panel: Panel, sums: Tensor, coefficients: Tensor | None) -> None:
    """The sums of each pair of tiles, and their coefficients if asked for."""
    B, frames, N, C = pairs.student.shape
    couples, width = triton.cdiv(panel.end - panel.first, 2), 2 * pairs.tiles - panel.first - panel.end + 1
    launch.fastest(
        lgf_relation_distances,
        lambda config: (triton.cdiv(couples, GROUP.value) * GROUP.value * width, B),
        configs.distances(max(C, pairs.teacher.shape[-1]), pairs.widest, launch.architecture(pairs.student.device)),
        pairs.student,
        pairs.teacher,
        launch.outer_strides(pairs.student),
        launch.outer_strides(pairs.teacher),
        pairs.student_norms,
        pairs.teacher_norms,
        pairs.weight,
        launch.exact(pairs.margin),
        launch.exact(1 / N**2),
        sums,
        sums if coefficients is None else coefficients,
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
        TILE=pairs.tile,
        enable_fp_fusion=False,  # a product that is subtracted unrounded would differ from an equal one, and have a sign
    )


def products(pairs: Pairs, panel: Panel, coefficients: Tensor, gradient: Tensor) -> Tensor:
    """Add the panel's part of sum_j g[i, j] z_j to the gradient, or where one panel is all return it in parts to be summed."""
    B, frames, N, C = pairs.student.shape
    rows = pairs.tiles - panel.first
    candidates = configs.products(C, coefficients.dtype, pairs.tile, launch.architecture(gradient.device))
    programs = rows * B * triton.cdiv(C, candidates[0].BLOCK_C)
    side_by_side = launch.multiprocessors(gradient.device)
    parts = panels.room_for_parts(gradient, panel, pairs.tiles, programs, side_by_side)
    launch.fastest(
        lgf_relation_products,
        lambda config: (rows, len(parts) * triton.cdiv(C, config["BLOCK_C"]), B),
        candidates if panel.first == 0 else candidates[:1],  # a sum cannot be timed by repeating it
        coefficients,
        pairs.student,
        launch.outer_strides(pairs.student),
        pairs.weight,
        parts,
        parts.stride()[:2],
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


def project(pairs: Pairs, parts: Tensor, gradient: Tensor) -> None:
    B, frames, N, C = pairs.student.shape
    channels = min(1024, max(16, triton.next_power_of_2(C)))
    rows = 4096 // channels
    launch.run(
        lgf_relation_project,
        (triton.cdiv(frames * N, rows), B),
        parts,
        parts.stride()[:2],
        pairs.student,
        launch.outer_strides(pairs.student),
        pairs.student_norms,
        gradient,
        frames,
        N,
        len(parts),
        C=C,
        INDEX=pairs.index,
        ROWS=rows,
        BLOCK_C=channels,
        num_warps=4,
    )


token_relation = Implementation(forward, backward, empty_residual)
