// Parameters of the forward pass, and the steps that all of its kernels share.
#pragma once

#include "../common/norms.h"
#include "calls.h"
#include "counted.h"
#include "divergence.h"

namespace lgf {
namespace cuda {

constexpr int kMaxSources = kMaxTeachers + 1;

// A source of logits: features, or cached logits (B, T-1, H, W, K*K).
struct Source {
  Tensor tensor;
  const void* norms;  // reciprocal ones (B, T, H, W); null for similarity "dot" and for a kernel that sums its own
  double weight;
};

// The teachers come first and the student last, because its logits are compared with those of the fused teacher.
struct ForwardParams {
  Grid grid;
  int window;     // odd, at most kMaxWindow
  bool backward;  // entry t has its queries in frame t+1 and its keys in frame t
  bool cosine;    // or "dot"
  bool cached;    // all sources but the last are logits
  int count;
  Source sources[kMaxSources];
  Divergence divergence;
  const void* token_weight;  // (B, T-1, H, W), by which tiles are skipped; or null
  void* logits;         // (B, T-1, H, W, K*K): the student's, the only output unless null
  void* values;         // (B, T-1, H, W)
  void* gradient;       // by the student's logits, (B, T-1, H, W, K, K+1), the last of a row undefined; or null
  DType gradient_type;  // outputs are in the accumulation type, except for this one
  void* kept_norms;     // output of the student's reciprocal norms, of a kernel that sums its own; or null
};

// Return the frames of the queries and of the keys of a tile, which is numbered by its pair.
LGF_DEVICE int query_frame(const ForwardParams& p, const Tile& tile) { return tile.t + (p.backward ? 1 : 0); }
LGF_DEVICE int key_frame(const ForwardParams& p, const Tile& tile) { return tile.t + (p.backward ? 0 : 1); }

// Returns the reciprocal norm of a token, 1 if there are none, and 0 outside the frame.
template <class T>
LGF_DEVICE T reciprocal_norm(const void* norms, const Grid& grid, int b, int t, int y, int x) {
  if (!in_frame(grid, y, x)) return T(0);
  return norms ? static_cast<const T*>(norms)[token_number(grid, int64_t(b) * grid.frames + t, y, x)] : T(1);
}

// Returns the logit of a raw product. Outside the frame (reciprocal norm 0) it is 0, whatever was multiplied there.
template <class T>
LGF_DEVICE T scaled(T product, T query_norm, T key_norm) {
  return key_norm == T(0) ? T(0) : product * (query_norm * key_norm);
}

// Computes zT of a tile from cached logits, in slots of `pitch` numbers a query.
template <int kThreads, class T>
LGF_DEVICE void fuse_cached(const ForwardParams& p, const Tile& tile, int height, int width, int K, int pitch, T* zT) {
  const int positions = K * K;
  for (int i = thread_index(); i < height * width * positions; i += kThreads) {
    const int query = i / positions, slot = i % positions;
    const int y = tile.y0 + query / width, x = tile.x0 + query % width;
    const bool inside = in_frame(p.grid, y, x) && in_frame(p.grid, y + slot / K - K / 2, x + slot % K - K / 2);
    T z = 0;
    for (int m = 0; m < p.count - 1 && inside; ++m) {
      const Source& teacher = p.sources[m];
      z += static_cast<T>(teacher.weight) *
           load<T>(teacher.tensor.data, teacher.tensor.dtype, offset(teacher.tensor, tile.b, tile.t, y, x) + slot);
    }
    zT[query * pitch + slot] = z;
  }
}

// Writes slots of a tile to (B, T-1, H, W, K, row).
template <int kThreads, class T>
LGF_DEVICE void store_slots(const ForwardParams& p, const Tile& tile, int height, int width, int K, int pitch,
                            const T* z, void* out, DType type, int row) {
  for (int i = thread_index(); i < height * width * K * row; i += kThreads) {
    const int query = i / (K * row), dy = i / row % K, dx = i % row;
    const int y = tile.y0 + query / width, x = tile.x0 + query % width;
    if (dx < K && in_frame(p.grid, y, x)) {
      const int64_t token = token_number(p.grid, pair_number(p.grid, tile.b, tile.t), y, x);
      store(out, type, (token * K + dy) * row + dx, z[query * pitch + dy * K + dx]);
    }
  }
}

// Writes a row of a window, K numbers of float32, in pieces of 16 bytes at multiples of 16. The number after them is none, and
// whoever takes it for one shall notice.
template <int K>
LGF_DEVICE void store_row(void* out, DType type, int64_t row, const float* numbers) {
  static_assert(K == 7, "rows of eight numbers");
  float z[8];
  LGF_UNROLL
  for (int i = 0; i < 8; ++i) z[i] = i < K ? numbers[i] : NAN;
  unsigned words[2][4];
  if (type == DType::bfloat16) {
    LGF_UNROLL
    for (int i = 0; i < 4; ++i)
      words[0][i] = narrow<BFloat16>(z[2 * i]).bits | unsigned(narrow<BFloat16>(z[2 * i + 1]).bits) << 16;
    store_piece(static_cast<char*>(out) + row * 16, words[0]);
  } else {
    std::memcpy(words, z, sizeof words);
    store_piece(static_cast<char*>(out) + row * 32, words[0]);
    store_piece(static_cast<char*>(out) + row * 32 + 16, words[1]);
  }
}

// Writes rows of K + 1 numbers as `store_slots` does, but a row a thread: a sixth of the instructions. `out` is aligned to
// 16 bytes, in bfloat16 or float32.
template <int kThreads, int K>
LGF_DEVICE void store_rows(const ForwardParams& p, const Tile& tile, int height, int width, int pitch, const float* z,
                           void* out, DType type) {
  for (int i = thread_index(); i < height * width * K; i += kThreads) {
    const int query = i / K, dy = i % K;
    const int y = tile.y0 + query / width, x = tile.x0 + query % width;
    if (!in_frame(p.grid, y, x)) continue;
    const int64_t token = token_number(p.grid, pair_number(p.grid, tile.b, tile.t), y, x);
    store_row<K>(out, type, token * K + dy, z + query * pitch + dy * K);
  }
}

// Writes the gradient of a tile, if it is wanted, from slots. K and `kWindow` as for `finish`.
template <int kThreads, int kWindow, class T>
LGF_DEVICE void store_gradient(const ForwardParams& p, const Tile& tile, int height, int width, int K, int pitch,
                               const T* z) {
  if (!p.gradient) return;
  if constexpr (kWindow == 0)
    store_slots<kThreads>(p, tile, height, width, K, pitch, z, p.gradient, p.gradient_type, K + 1);
  else
    store_rows<kThreads, kWindow>(p, tile, height, width, pitch, z, p.gradient, p.gradient_type);
}

// Writes the outputs of a tile from its slots. K is the window, and so is `kWindow`, or 0 if the compiler does not know it.
template <int kThreads, int kWindow, class T>
LGF_DEVICE void finish(const ForwardParams& p, const Tile& tile, int height, int width, int K, int pitch, const T* zT,
                       T* zS) {
  const DType accumulate = sizeof(T) == sizeof(double) ? DType::float64 : DType::float32;
  if (p.logits) return store_slots<kThreads>(p, tile, height, width, K, pitch, zS, p.logits, accumulate, K);
  // Whole warps run every round, because lanes exchange numbers inside and outside the frame.
  for (int query = thread_index() / kLanesPerToken; query < height * width; query += kThreads / kLanesPerToken) {
    const int y = tile.y0 + query / width, x = tile.x0 + query % width;
    const T value = divergence<kWindow>(p.grid, K, p.divergence, y, x, zT + query * pitch, zS + query * pitch);
    if (in_frame(p.grid, y, x) && thread_index() % kLanesPerToken == 0)
      static_cast<T*>(p.values)[token_number(p.grid, pair_number(p.grid, tile.b, tile.t), y, x)] = value;
  }
  sync_block();
  store_gradient<kThreads, kWindow>(p, tile, height, width, K, pitch, zS);
}

// Returns whether all tokens of a tile have weight 0.
template <class T>
LGF_DEVICE bool is_skipped(const ForwardParams& p, const Tile& tile, int height, int width) {
  return p.token_weight && !any_counts<T>(p.token_weight, p.grid, pair_number(p.grid, tile.b, tile.t), tile.y0, tile.x0,
                                          height, width);
}

// Writes the outputs of a skipped tile, zeros, by way of K*K numbers of shared memory.
template <int kThreads, int kWindow, class T>
LGF_DEVICE void finish_skipped(const ForwardParams& p, const Tile& tile, int height, int width, int K, T* zeros) {
  for (int i = thread_index(); i < K * K; i += kThreads) zeros[i] = T(0);
  for (int query = thread_index(); query < height * width; query += kThreads) {
    const int y = tile.y0 + query / width, x = tile.x0 + query % width;
    if (in_frame(p.grid, y, x))
      static_cast<T*>(p.values)[token_number(p.grid, pair_number(p.grid, tile.b, tile.t), y, x)] = T(0);
  }
  sync_block();
  store_gradient<kThreads, kWindow>(p, tile, height, width, K, 0, zeros);
}

}  // namespace cuda
}  // namespace lgf
