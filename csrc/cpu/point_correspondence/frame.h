// A block of a frame's tokens, normalised, in the two orders that the products read, and the logits of queries with it.
#pragma once

#include "../common/threads.h"
#include "../common/transpose.h"
#include "calls.h"
#include "products.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Tokens of a block and queries against it at a time: what the products of one block touch stays in the L2 cache.
constexpr int64_t kBlockTokens = 192;
constexpr int64_t kBlockQueries = 96;

// Sizes of the buffers. With `whole` a block is a whole frame.
template <class T>
struct PointLayout {
  Grid grid;
  int64_t channels, tokens, queries;
  int64_t channel_panels;
  int64_t block_tokens;  // at most, whole panels

  PointLayout(const Grid& grid, int64_t channels, int64_t queries, bool whole)
      : grid(grid),
        channels(channels),
        tokens(grid.rows * grid.cols),
        queries(queries),
        channel_panels(round_up(channels, kPanel<T>) / kPanel<T>) {
    // As many blocks as it takes, as equal as possible.
    const int64_t panels = round_up(tokens, kPanel<T>) / kPanel<T>;
    const int64_t most = kBlockTokens > kPanel<T> ? kBlockTokens / kPanel<T> : 1;
    const int64_t blocks = whole ? 1 : (panels + most - 1) / most;
    block_tokens = (panels + blocks - 1) / blocks * kPanel<T>;
  }

  int64_t padded_channels() const { return channel_panels * kPanel<T>; }
  int64_t block_size() const { return block_tokens * padded_channels(); }
};

// Tokens first .. first + count - 1 of a frame; `width` is count in whole panels.
template <class T>
struct TokenBlock {
  int64_t first, count, width;

  TokenBlock(const PointLayout<T>& layout, int64_t first) : first(first) {
    count = layout.tokens - first < layout.block_tokens ? layout.tokens - first : layout.block_tokens;
    width = round_up(count, kPanel<T>);
  }
};

// Calls function(token in the block, its row and column in the frame, tokens) for tokens side by side in an image row, as
// many at a time as a vector has lanes.
template <class T, class Function>
LGF_INLINE void for_each_run(const PointLayout<T>& layout, const TokenBlock<T>& block, Function&& function) {
  for (int64_t i = 0; i < block.count;) {
    const int64_t y = (block.first + i) / layout.grid.cols, x = (block.first + i) % layout.grid.cols;
    const int64_t in_row = layout.grid.cols - x, left = block.count - i;
    const int64_t run = in_row < left ? in_row : left, count = run < kLanes<T> ? run : kLanes<T>;
    function(i, y, x, count);
    i += count;
  }
}

template <class T>
class PackedBlock {
 public:
  PackedBlock(const PointLayout<T>& layout, Arena& arena)
      : layout_(layout),
        tokens_(arena.take<T>(layout.block_size())),
        channels_(arena.take<T>(layout.block_size())),
        y_(arena.take<T>(layout.block_tokens)),
        x_(arena.take<T>(layout.block_tokens)) {}

  void pack(const Tensor& f, int64_t b, int64_t t, const TokenBlock<T>& block) {
    width_ = block.width;
    with_storage_type(f.dtype, [&](auto tag) {
      using Storage = typename decltype(tag)::type;
      for_each_run<T>(layout_, block, [&](int64_t i, int64_t y, int64_t x, int64_t count) {
        const Storage* token = token_address<Storage>(f, b, t, y, x);
        const Vec<T> r = reciprocal_norms<T>(token, f.stride[3], count, f.channels);
        for (int64_t k = 0; k < count; ++k) {
          pack_token<T>(token + k * f.stride[3], f.channels, r[k], tokens_ + (i + k) * kPanel<T>, width_ * kPanel<T>);
          y_[i + k] = static_cast<T>(y);
          x_[i + k] = static_cast<T>(x + k);
        }
      });
    });
    for (int64_t i = block.count; i < width_; ++i) {
      for (int64_t p = 0; p < layout_.channel_panels; ++p) clear(tokens_ + (p * width_ + i) * kPanel<T>, kPanel<T>);
      y_[i] = x_[i] = T(0);
    }
    for (int64_t i = 0; i < width_; i += kPanel<T>)
      for (int64_t p = 0; p < layout_.channel_panels; ++p)
        transpose<T>(tokens_ + (p * width_ + i) * kPanel<T>, kPanel<T>, kPanel<T>, kPanel<T>,
                     channels_ + i * layout_.padded_channels() + p * kPanel<T> * kPanel<T>, kPanel<T>);
  }

  // z[query][token], `block_tokens` apart, of `count` queries of contiguous channels. Tokens that are none get -inf.
  void logits(const T* queries, int64_t count, const TokenBlock<T>& block, T* z) const {
    const int64_t pitch = layout_.block_tokens;
    product<T>({queries, layout_.channels, 1}, count, layout_.channels,
               {channels_, layout_.padded_channels() * kPanel<T>}, block.width / kPanel<T>, false,
               {z, pitch, kPanel<T>});
    for (int64_t n = 0; n < count; ++n)
      for (int64_t i = block.count; i < block.width; ++i) z[n * pitch + i] = -static_cast<T>(__builtin_inf());
  }

  Panels<T> tokens() const { return {tokens_, width_ * kPanel<T>}; }
  const T* y() const { return y_; }
  const T* x() const { return x_; }

 private:
  const PointLayout<T>& layout_;
  T* tokens_;    // [channel panel][token][kPanel]
  T* channels_;  // [token panel][channel][kPanel]
  T* y_;         // of each token
  T* x_;
  int64_t width_ = 0;
};

// Whether the tokens at (y, x) lie in the window around (y0, x0).
template <class T>
LGF_INLINE Mask<T> in_window(Vec<T> y, Vec<T> x, T y0, T x0, T window) {
  return (y - y0 <= window) & (y0 - y <= window) & (x - x0 <= window) & (x0 - x <= window);
}

// Calls function(first query, queries) for the queries of a video, as many at a time as are kept in cache.
template <class Function>
LGF_INLINE void for_each_query_block(int64_t queries, Function&& function) {
  for (int64_t n = 0; n < queries; n += kBlockQueries)
    function(n, queries - n < kBlockQueries ? queries - n : kBlockQueries);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
