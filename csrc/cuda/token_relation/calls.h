// Calls of the kernels of token relation distances. lgf_kernels/token_relation/panels.py has the order of the steps.
//
//     d[i, j] = < z_i, z_j > r_i r_j - < m_i, m_j > q_i q_j                     r, q: reciprocal norms, or 1
//     sum     = w[i, j] relu( |d[i, j]| - margin ), over a pair of tiles        w[i, j] = scale c[f_i, f_j]
//     g[i, j] = 2 w[i, j] sign(d[i, j]) 1[|d[i, j]| > margin] p_i p_j           p: coefficient norms, r or a substitute
//     dz_i    = o_i sum_j g[i, j] x_j, less its part along z_i                  x, o: z and 1, or substitutes
//
// Squared, the sum is of w d^2, and sign(d) is 2 d. Similarities below a floor (0 or -inf) are 0 in d, and g is 0 where the
// student's are. Without norms nothing is taken from dz.
//
// Tiles continue across the ends of frames. Blocks of g of the pairs of tiles (row, column >= row) with first <= row < end
// are stored one after the other, row by row, video by video.
#pragma once

#include "../common/calls.h"

namespace lgf {
namespace cuda {

// The tokens of all frames of a video in one row, (B, 1, 1, n, C), their frames, and the weights of pairs of frames.
struct Video {
  int batch, frames, frame_tokens, tokens;
  const void* weight;  // c, (frames, frames), symmetric, in the accumulation type
};

// Rows first .. end - 1 of tiles.
struct Rows {
  int first, end;
};

struct DistancesCall {
  Video video;
  Tensor student, teacher;
  const void *student_norms, *teacher_norms, *coefficient_norms;  // (B, n)
  double margin, scale;
  bool squared;
  double student_floor, teacher_floor;
  Rows rows;
  void* sums;  // (B, pairs of tiles of a whole video); not written where no weight makes a pair count
  int64_t sums_stride;
  void* coefficients;  // (B, blocks, tile, tile), or null
  DType coefficient_type;
  Stream stream;
};

struct ProductsCall {
  Video video;
  Tensor factors;  // x
  const void* coefficients;
  DType coefficient_type;
  Rows rows;
  void* parts;  // (splits, B, n, C)
  int splits;
  int64_t part_stride;
  Stream stream;
};

struct ProjectCall {
  Grid grid;
  Tensor student;
  const void* norms;      // r (B, n), or null: no projection
  const void* row_scale;  // o (B, n), or null
  const void* parts;
  int splits;
  int64_t part_stride;
  void* gradient;  // (B, n, C)
  Stream stream;
};

// Sizes of a call: tokens of a tile, the type of the coefficients, which also decides the kernels, and how many blocks of
// `products` run side by side, each with how many channels.
struct Cut {
  int tile;
  DType coefficient_type;
  int side_by_side, channels;
};

Cut relation_cut(const Tensor& student, const Tensor& teacher, int device);

void relation_distances(const DistancesCall& call);
void relation_products(const ProductsCall& call);
void relation_project(const ProjectCall& call);

}  // namespace cuda
}  // namespace lgf
