// Parameters of the backward pass, for all of its kernels: the gradient of factor sum scale_i g[i, d] z[i, d].
//
//     df^_i = sum_d g[i, d] f^_{i+d} + sum_d g[i-d, d] f^_{i-d}                     as a query, as a key
//     df_i = (df^_i - < df^_i, f^_i > f^_i) / ||f_i||                               similarity "cosine"
//
// A token is a query towards one of its two neighbouring frames and a key towards the other; with both directions it is
// both towards both. Towards a frame, side 0 the next one and side 1 the previous one, the gradient is a product of
// coefficients with that frame's features. Query or key only decides where a coefficient is read: in the token's own
// window, at offset d, or in the other token's window, at offset -d. A block gathers the gradient of its tokens and writes
// it once: no atomics, and the same bits every time.
//
// The part of df^ along f^ must be known before any channel is written. With more channels than a kernel holds the products
// are computed twice for cosine similarity, once for that part and once for the output.
#pragma once

#include "forward.h"

namespace lgf {
namespace cuda {

// The gradient by the logits of one direction; `g` null: there is none.
struct LogitGradient {
  const void* g;  // (B, T-1, H, W, K, K+1): one number between a window's rows aligns those of window 7
  DType type;
};

struct BackwardParams {
  Grid grid;
  int window;
  Tensor features;
  const void* norms;  // reciprocal ones (B, T, H, W), or null for similarity "dot"
  LogitGradient forward, backward;
  const void* scales;  // of tokens, (B, T-1, H, W) in the accumulation type, or null
  const void* counted;  // the scales, by which tiles and sides are skipped; or null
  const void* scale;   // of all, one number of that type, or null
  double factor;
  void* gradient;  // (B, T, H, W, C) contiguous, in the type of the features
};

// One of the two frames next to a frame, and the gradients of their pair.
struct Side {
  int t;
  bool exists;
  int64_t pair;  // of all pairs of all videos
  const LogitGradient& as_query;
  const LogitGradient& as_key;

  LGF_DEVICE Side(const BackwardParams& p, const Tile& tile, int side)
      : t(tile.t + 1 - 2 * side),
        exists(t >= 0 && t < p.grid.frames),
        pair(pair_number(p.grid, tile.b, tile.t - side)),
        as_query(side == 0 ? p.forward : p.backward),
        as_key(side == 0 ? p.backward : p.forward) {}
};

// Returns the sides towards which a tile of tokens has a gradient, in bits 0 and 1: those with a query of a scale other than 0
// among the tile's tokens, or among those whose keys they are.
template <class T>
LGF_DEVICE int counted_sides(const BackwardParams& p, const Tile& tile, int height, int width) {
  int sides = 0;
  LGF_UNROLL
  for (int which = 0; which < 2; ++which) {
    const Side side(p, tile, which);
    const int reach = side.as_key.g ? p.window / 2 : 0;
    const bool counts = side.exists && (!p.counted || any_counts<T>(p.counted, p.grid, side.pair, tile.y0 - reach, tile.x0 - reach,
                                                                    height + 2 * reach, width + 2 * reach));
    sides |= counts << which;
  }
  return sides;
}

// Writes the gradient of a tile without such a side, zeros, by a function that stores kStep of them at a place.
template <int kThreads, int kStep, class Function>
LGF_DEVICE void write_zeros(const BackwardParams& p, const Tile& tile, int height, int width, Function&& store_zeros) {
  const int channels = p.features.channels, steps = channels / kStep;
  for (int i = thread_index(); i < height * width * steps; i += kThreads) {
    const int token = i / steps, y = tile.y0 + token / width, x = tile.x0 + token % width;
    const int64_t own = token_number(p.grid, int64_t(tile.b) * p.grid.frames + tile.t, y, x);
    if (in_frame(p.grid, y, x)) store_zeros(own * channels + i % steps * kStep);
  }
}

template <class T>
LGF_DEVICE T token_scale(const BackwardParams& p, int64_t token) {
  return p.scales ? static_cast<const T*>(p.scales)[token] : T(1);
}

// Returns the scale of all tokens. It is applied at the end, where it costs one multiplication a number.
template <class T>
LGF_DEVICE T common_scale(const BackwardParams& p) {
  return static_cast<T>(p.factor) * (p.scale ? *static_cast<const T*>(p.scale) : T(1));
}

// Returns the factor of f^ in what the normalisation removes from df^.
template <class T>
LGF_DEVICE T projected(T along, T reciprocal_norm) {
  return is_short(reciprocal_norm) ? T(0) : along;
}

}  // namespace cuda
}  // namespace lgf
