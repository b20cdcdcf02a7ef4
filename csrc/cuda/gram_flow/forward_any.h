// Forward pass for every window, type and number of channels: the steps of forward_band.h by plain multiplications.
//
// A thread takes a query and a row of its window: one chunk of the query's channels against those of K keys. The sums
// over channels lie in shared memory, in the student's slots, and move to the teacher's when a teacher is done.
#pragma once

#include "forward.h"

namespace lgf {
namespace cuda {

// Tile and shared memory of the general kernels. They fit into 99 KiB with the largest window.
template <class T>
struct AnyTile {
  static constexpr int kThreads = 128;
  static constexpr int kRows = 4, kCols = sizeof(T) == sizeof(float) ? 8 : 4, kTokens = kRows * kCols;
  static constexpr int kChunk = 64 / static_cast<int>(sizeof(T));
  static constexpr int kPitch = kChunk + 16 / static_cast<int>(sizeof(T));  // of a token: neighbours in other banks

  static_assert(kCols + kMaxWindow - 1 <= 32, "a warp reads a row of the weights that a tile's windows reach");

  static LGF_HOST_DEVICE int halo_cols(int K) { return kCols + K - 1; }
  static LGF_HOST_DEVICE int halo(int K) { return (kRows + K - 1) * halo_cols(K); }

  // Loads channels c0 .. c0 + kChunk of a box of tokens of one frame; zeros outside it and past the last channel.
  static LGF_DEVICE void load_box(const Tensor& f, const Grid& grid, int64_t b, int t, int y0, int x0, int rows, int cols,
                                  int c0, T* box) {
    for (int i = thread_index(); i < rows * cols * kChunk; i += kThreads) {
      const int token = i / kChunk, c = c0 + i % kChunk;
      const int y = y0 + token / cols, x = x0 + token % cols;
      const bool wanted = in_frame(grid, y, x) && c < f.channels;
      box[token * kPitch + i % kChunk] = wanted ? load<T>(f.data, f.dtype, offset(f, b, t, y, x) + c) : T(0);
    }
  }
};

template <class T>
struct AnyForward {
  using Params = ForwardParams;
  using At = AnyTile<T>;
  static constexpr int kThreads = At::kThreads, kBlocksPerSm = 2;

  static int64_t shared_bytes(int K) {
    const int slots = 2 * At::kTokens * K * K, features = (At::kTokens + At::halo(K)) * At::kPitch;
    return (slots + features) * static_cast<int64_t>(sizeof(T));
  }

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const int K = p.window, positions = K * K;
    const Tile tile(p.grid, p.grid.frames - 1, At::kRows, At::kCols);
    T* queries = reinterpret_cast<T*>(shared);
    T* halo = queries + At::kTokens * At::kPitch;
    T* zT = halo + At::halo(K) * At::kPitch;
    T* zS = zT + At::kTokens * positions;

    if (is_skipped<T>(p, tile, At::kRows, At::kCols))
      return finish_skipped<kThreads, 0>(p, tile, At::kRows, At::kCols, K, zS);
    if (p.cached) fuse_cached<kThreads>(p, tile, At::kRows, At::kCols, K, positions, zT);
    for (int m = p.cached ? p.count - 1 : 0; m < p.count; ++m) {
      const Tensor& f = p.sources[m].tensor;
      for (int c0 = 0; c0 < f.channels; c0 += At::kChunk) {
        At::load_box(f, p.grid, tile.b, query_frame(p, tile), tile.y0, tile.x0, At::kRows, At::kCols, c0, queries);
        At::load_box(f, p.grid, tile.b, key_frame(p, tile), tile.y0 - K / 2, tile.x0 - K / 2, At::kRows + K - 1,
                     At::halo_cols(K), c0, halo);
        sync_block();
        multiply_chunk(K, queries, halo, c0 > 0, zS);
        sync_block();
      }
      const bool student = m == p.count - 1;
      scale_slots(p, tile, m, !student && m > 0, zS, student ? zS : zT);
    }
    sync_block();
    finish<kThreads, 0>(p, tile, At::kRows, At::kCols, K, positions, zT, zS);
  }

 private:
  // A thread always has the same slots, so that only the features need barriers.
  template <class Function>
  static LGF_DEVICE void for_each_window_row(int K, Function&& function) {
    for (int task = thread_index(); task < At::kTokens * K; task += kThreads)
      function(task % At::kTokens, task / At::kTokens);
  }

  static LGF_DEVICE void multiply_chunk(int K, const T* queries, const T* halo, bool add, T* z) {
    for_each_window_row(K, [&](int query, int dy) {
      const T* q = queries + query * At::kPitch;
      const T* k = halo + ((query / At::kCols + dy) * At::halo_cols(K) + query % At::kCols) * At::kPitch;
      T* slots = z + query * K * K + dy * K;
      for (int dx = 0; dx < K; ++dx, k += At::kPitch) {
        T sum = add ? slots[dx] : T(0);
        LGF_UNROLL
        for (int c = 0; c < At::kChunk; ++c) sum += q[c] * k[c];
        slots[dx] = sum;
      }
    });
  }

  // out (+)= weight * logits, from the raw products.
  static LGF_DEVICE void scale_slots(const Params& p, const Tile& tile, int m, bool add,
                                     const T* products, T* out) {
    const int K = p.window;
    const T weight = m == p.count - 1 ? T(1) : static_cast<T>(p.sources[m].weight);
    for_each_window_row(K, [&](int query, int dy) {
      const int y = tile.y0 + query / At::kCols, x = tile.x0 + query % At::kCols;
      const T r = reciprocal_norm<T>(p.sources[m].norms, p.grid, tile.b, query_frame(p, tile), y, x);
      for (int dx = 0; dx < K; ++dx) {
        const int slot = query * K * K + dy * K + dx;
        const T s = reciprocal_norm<T>(p.sources[m].norms, p.grid, tile.b, key_frame(p, tile), y + dy - K / 2, x + dx - K / 2);
        const T logit = weight * scaled(products[slot], r, s);
        out[slot] = add ? out[slot] + logit : logit;
      }
    });
  }
};

}  // namespace cuda
}  // namespace lgf
