"""Token relation distances, and their gradient from stored coefficients for half of all pairs.

    d[i, j] = < z_i, z_j > r_i r_j - < m_i, m_j > q_i q_j                     r, q: reciprocal norms; 1 for "dot"
    loss_b  = sum_{i, j} w[i, j] relu( |d[i, j]| - margin )                   w[i, j] = c[f_i, f_j] / N^2
    g[i, j] = 2 w[i, j] sign(d[i, j]) 1[|d[i, j]| > margin] r_i r_j
    dz_i    = sum_j g[i, j] z_j, less its part along z_i                      (I - z^_i z^_i^T) dz^_i / ||z_i||

For "l2" the loss is w d^2 and sign(d) is 2 d. Clamped similarities are 0 in d, and g is 0 where the
student's are. For "dot" nothing is taken from the sum.

Everything with two indices is symmetric. The n tokens of a video are cut into tiles,
tiles[0] .. tiles[T-1]. The kernels, and what one program computes:

    lgf_relation_distances   a pair (row, column >= row): d, its part of the loss and, for a gradient, the block g
    lgf_relation_products    a tile: sum_j g[i, j] z_j over the blocks of its row, and transposed over those of its column
    lgf_relation_project     a few tokens: the part along z_i is subtracted

With C channels and C' of the teacher this costs n^2 (C + C') operations for half of all pairs and
2 n^2 C for the products, and scratch for n^2 / 2 numbers in the type of the features
(float32 for float16): 1.06 GB at n = 32,400 in bfloat16. Where that exceeds the budget
(`panels.scratch_bytes`) the rows are processed in panels, each stored, multiplied and overwritten
by the next. The operations are the same for any budget; only the gradient's accumulators are read
and written once for each panel. A budget of 60 MiB divides that video into 18 panels and takes 96
MB together with the gradient in float32. To store nothing and compute d again for the products
would cost n^2 (C + C') more operations, and accumulators of more than 256 channels leave no
registers for it. The products are not one matrix product of a library, so that weights of 0 save
them too.

g contains the norms of both tokens so that it stays symmetric, each block is used twice, and its
rounding to bfloat16 errs independently in each pair, which averages out. Rounding c, or r_j z_j,
would err alike in all pairs of a token.

Tiles cross the ends of frames: 150 tokens would fill two tiles of 128 to 59 %, and pairs of them to
a third. Pairs of tiles whose weights are all 0 are skipped; the weights are read on the device.
"""

from torch import Tensor

from ..core import triton_launch as launch
from ..core.numerics import accumulate_dtype, non_finite_to_nan, reduce_videos
from ..core.registry import Implementation
from ..core.triton_norms import reciprocal_norms
from . import panels
from .options import RelationOptions
from .panels import Panel, backward
from .portable import empty_residual
from .triton_distances import distances
from .triton_products import products, project
from .triton_tiles import Pairs


def forward(
    student: Tensor, teacher: Tensor, pair_weight: Tensor, options: RelationOptions, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and, if `needs_grad`, the gradient of each video's own loss (B, F, N, C)."""
    student, teacher = launch.usable([student, teacher])
    accumulate = accumulate_dtype(student)
    weight = ((pair_weight + pair_weight.mT) / 2).to(accumulate).contiguous()
    with launch.on_device_of(student):
        norms = reciprocal_norms([student.unsqueeze(3), teacher.unsqueeze(3)], options.similarity)
        pairs = Pairs(student, teacher, *norms, weight, options)
        whole = Panel(slice(0, len(student)), 0, pairs.tiles)
        sums = student.new_empty((len(student), whole.blocks(pairs.tiles)), dtype=accumulate)
        gradient = empty_residual(student, needs_grad)
        dtype = launch.operand_type(student.dtype, accumulate, by_gradient=True)
        kernels = panels.Kernels(distances, products, project)
        panels.run(kernels, pairs, dtype, sums, gradient if needs_grad else None)
    return reduce_videos(non_finite_to_nan(sums.sum(1)), options.reduction), gradient


token_relation = Implementation(forward, backward, empty_residual)
