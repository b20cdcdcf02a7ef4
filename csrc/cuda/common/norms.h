// Reciprocal norms of all tokens, by which cosine similarity multiplies the logits:
//
//     r_i = 1 / max(||f_i||, 1e-6)
//
// Normalised copies of the features would cost as much memory as the features, and rounded to half precision they
// would cost the gradient its accuracy: where neighbours are alike, it is a small difference of large terms.
//
// The kernel computes them for kernels that do not sum norms themselves: a warp sums the squares of a token. A norm that is
// not finite has the reciprocal NaN and not 0, because an infinity in the features must not result in a similarity of 0.
// No reciprocal is 0, so that 0 can stand for a token outside the frame.
#pragma once

#include "tensor.h"

namespace lgf {
namespace cuda {

constexpr double kEps = 1e-6;

// Returns whether a vector is so short that its norm counts as kEps, a constant: its gradient is not projected.
template <class T>
LGF_DEVICE bool is_short(T reciprocal_norm) {
  return reciprocal_norm >= T(0.999999 / kEps);
}

template <class T>
LGF_DEVICE T reciprocal(T sum_of_squares) {
  const T norm = sqrt(sum_of_squares);
  const T r = T(1) / (norm < T(kEps) ? T(kEps) : norm);
  return r > T(0) ? r : T(NAN);
}

// Return this lane's part of the sum of squares of the token at `at`, of kLanes neighbouring lanes that divide it. In pieces:
// half precision, every token at a multiple of 16 bytes.
template <class T, int kLanes>
LGF_DEVICE T part_of_squares(const Tensor& f, int64_t at) {
  T sum = 0;
  for (int c = thread_index() % kLanes; c < f.channels; c += kLanes) {
    const T v = load<T>(f.data, f.dtype, at + c);
    sum += v * v;
  }
  return sum;
}

template <class T, int kLanes>
LGF_DEVICE T part_of_squares_in_pieces(const Tensor& f, int64_t at) {
  T sum = 0;
  for (int c = thread_index() % kLanes * 8; c < f.channels; c += kLanes * 8) {
    const Piece piece = *reinterpret_cast<const Piece*>(static_cast<const std::uint16_t*>(f.data) + at + c);
    LGF_UNROLL
    for (int i = 0; i < 8; ++i) {
      const bool bfloat = f.dtype == DType::bfloat16;
      const T v = bfloat ? widen(BFloat16{piece.bits[i]}) : widen(Float16{piece.bits[i]});
      sum += v * v;
    }
  }
  return sum;
}

template <int kLanes, class T>
LGF_DEVICE T sum_of_neighbours(T part) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) part += shuffle_xor(part, mask);
  return part;
}

template <class T>
struct Norms {
  static constexpr int kThreads = 256, kBlocksPerSm = 4, kTokens = kThreads / 32;

  struct Params {
    Grid grid;
    Tensor features;
    bool wide;  // half precision, every token at a multiple of 16 bytes, in pieces of 16 bytes
    T* norms;   // (B, T, H, W)
  };

  static int64_t blocks(const Grid& grid) {
    return (int64_t(grid.batch) * grid.frames * grid.rows * grid.cols + kTokens - 1) / kTokens;
  }

  static LGF_DEVICE void run(const Params& p, char*) {
    const Grid& grid = p.grid;
    const int64_t token = int64_t(block_index()) * kTokens + thread_index() / 32;
    const int64_t row = token / grid.cols, frame = row / grid.rows, b = frame / grid.frames;
    if (b >= grid.batch) return;  // a whole warp
    const int64_t at = offset(p.features, b, frame % grid.frames, static_cast<int>(row % grid.rows),
                              static_cast<int>(token % grid.cols));
    const T part = p.wide ? part_of_squares_in_pieces<T, 32>(p.features, at) : part_of_squares<T, 32>(p.features, at);
    const T sum = sum_of_neighbours<32>(part);
    if (thread_index() % 32 == 0) p.norms[token] = reciprocal(sum);
  }
};

}  // namespace cuda
}  // namespace lgf
