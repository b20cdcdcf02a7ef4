// Backward pass for every window, type and number of channels (backward.h), by plain multiplications.
//
// A thread takes a token and a few channels: the coefficients of the tile lie in shared memory, and the halos of both
// neighbouring frames pass through it, a chunk of channels at a time.
#pragma once

#include "backward.h"
#include "forward_any.h"

namespace lgf {
namespace cuda {

template <class T>
struct AnyBackward {
  using Params = BackwardParams;
  using At = AnyTile<T>;
  static constexpr int kThreads = At::kThreads, kBlocksPerSm = 2;
  static constexpr int kShare = 4;                     // channels of a thread
  static constexpr int kSharers = At::kChunk / kShare;  // threads of a token, neighbours
  static_assert(At::kTokens * kSharers <= kThreads && At::kTokens * kSharers % 32 == 0, "whole warps take part");

  static int64_t shared_bytes(int K) {
    return (2 * At::kTokens * K * K + At::halo(K) * At::kPitch) * static_cast<int64_t>(sizeof(T));
  }

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile tile(p.grid, p.grid.frames, At::kRows, At::kCols);
    T* coefficients = reinterpret_cast<T*>(shared);  // [side][token][K*K]
    T* halo = coefficients + 2 * At::kTokens * p.window * p.window;
    const int counted = counted_sides<T>(p, tile, At::kRows, At::kCols);
    if (!counted)
      return write_zeros<kThreads, 1>(p, tile, At::kRows, At::kCols, [&](int64_t at) {
        store(p.gradient, p.features.dtype, at, T(0));
      });
    for (int side = 0; side < 2; ++side)
      if (counted >> side & 1) gather(p, tile, side, coefficients);

    const int token = thread_index() / kSharers, sharer = thread_index() % kSharers;
    const int y = tile.y0 + token / At::kCols, x = tile.x0 + token % At::kCols;
    const bool busy = token < At::kTokens, writes = busy && in_frame(p.grid, y, x);
    const T r = writes ? reciprocal_norm<T>(p.norms, p.grid, tile.b, tile.t, y, x) : T(0);
    const T scale = common_scale<T>(p);
    const int64_t own = token_number(p.grid, int64_t(tile.b) * p.grid.frames + tile.t, y, x);
    T along = 0;
    for (int pass = p.norms ? 0 : 1; pass < 2; ++pass) {
      for (int c0 = 0; c0 < p.features.channels; c0 += At::kChunk) {
        T sum[kShare] = {};
        multiply_chunk(p, tile, counted, c0, coefficients, halo, busy ? token : 0, sharer, sum);
        if (!writes) continue;
        for (int i = 0; i < kShare && c0 + sharer * kShare + i < p.features.channels; ++i) {
          const int c = c0 + sharer * kShare + i;
          T unit = 0;
          if (p.norms)
            unit = r * load<T>(p.features.data, p.features.dtype, offset(p.features, tile.b, tile.t, y, x) + c);
          if (pass == 0) along += sum[i] * unit;
          else write(p, own * p.features.channels + c, sum[i], along, unit, r, scale);
        }
      }
      if (pass == 0) {
        for (int mask = 1; mask < kSharers; mask *= 2) along += shuffle_xor(along, mask);
        along = projected(along, r);
      }
    }
  }

 private:
  // Returns scale g of one position of a token's window. Outside the frame it is undefined.
  static LGF_DEVICE T coefficient(const Params& p, const LogitGradient& gradient, int64_t token, int slot) {
    const int K = p.window;
    const int64_t at = (token * K + slot / K) * (K + 1) + slot % K;
    return load<T>(gradient.g, gradient.type, at) * token_scale<T>(p, token);
  }

  // Gathers the coefficients towards a side that counts, with the other token's reciprocal norm.
  static LGF_DEVICE void gather(const Params& p, const Tile& tile, int which, T* coefficients) {
    const int K = p.window, positions = K * K;
    const Side side(p, tile, which);
    for (int i = thread_index(); i < At::kTokens * positions; i += kThreads) {
      const int token = i / positions, slot = i % positions;
      const int y = tile.y0 + token / At::kCols, x = tile.x0 + token % At::kCols;
      const int other_y = y + slot / K - K / 2, other_x = x + slot % K - K / 2;
      T g = 0;
      if (in_frame(p.grid, y, x) && in_frame(p.grid, other_y, other_x)) {
        const int64_t own = token_number(p.grid, side.pair, y, x);
        const int64_t other = token_number(p.grid, side.pair, other_y, other_x);
        if (side.as_query.g) g += coefficient(p, side.as_query, own, slot);
        if (side.as_key.g) g += coefficient(p, side.as_key, other, positions - 1 - slot);
        g *= reciprocal_norm<T>(p.norms, p.grid, tile.b, side.t, other_y, other_x);
      }
      coefficients[which * At::kTokens * positions + i] = g;
    }
  }

  // sum += the products of this token's coefficients with the halos of the sides that count, for this thread's channels of the
  // chunk.
  static LGF_DEVICE void multiply_chunk(const Params& p, const Tile& tile, int counted, int c0, const T* coefficients,
                                        T* halo, int token, int sharer, T (&sum)[kShare]) {
    const int K = p.window;
    for (int which = 0; which < 2; ++which) {
      if (!(counted >> which & 1)) continue;  // for the whole block
      const Side side(p, tile, which);
      sync_block();
      At::load_box(p.features, p.grid, tile.b, side.t, tile.y0 - K / 2, tile.x0 - K / 2, At::kRows + K - 1,
                   At::halo_cols(K), c0, halo);
      sync_block();
      const T* g = coefficients + (which * At::kTokens + token) * K * K;
      for (int dy = 0; dy < K; ++dy) {
        const T* f = halo + ((token / At::kCols + dy) * At::halo_cols(K) + token % At::kCols) * At::kPitch;
        for (int dx = 0; dx < K; ++dx, ++g, f += At::kPitch) {
          LGF_UNROLL
          for (int i = 0; i < kShare; ++i) sum[i] += *g * f[sharer * kShare + i];
        }
      }
    }
  }

  static LGF_DEVICE void write(const Params& p, int64_t at, T sum, T along, T unit, T r, T scale) {
    store(p.gradient, p.features.dtype, at, scale * (p.norms ? (sum - along * unit) * r : sum));
  }
};

}  // namespace cuda
}  // namespace lgf
