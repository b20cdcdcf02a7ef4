// Local Gram products of two frames, one row of queries at a time:
//
//     z[dy, dx, x] = < query[x], key[y + dy][x + dx] >
//
// Tiling: kTileTokens neighbouring queries x up to kMaxOffsets neighbouring offsets dx have one vector accumulator per
// product over the channels; a key vector is loaded once for all queries whose windows hold it. The lanes of all
// accumulators are summed together at the end.
#pragma once

#include "../common/ahead.h"
#include "pack.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// sums[i] = sum of the lanes of v[i].
template <class T, int Count>
LGF_INLINE void sum_lanes(const Vec<T>* v, T* sums) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 32
  for (int first = 0; first < Count; first += n) {
    Vec<T> group[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) group[i] = first + i < Count ? v[first + i] : Vec<T>{};
    store<T>(sums + first, row_sums<T>(group));
  }
}

// Of Tokens queries from number `first` on; `key` points at the key of the first query's first offset. Adds to
// planes[dx][0 .. Tokens) when `accumulate`, else overwrites. `kPacked`: so are the queries, at distances known here.
template <class T, int Tokens, int Offsets, bool kPacked>
void gram_tile(const QueryRow<T>& queries, int64_t first, const T* key, int64_t key_stride, int64_t panels,
               bool accumulate, T* planes, int64_t pitch) {
  Vec<T> acc[Offsets * Tokens] = {};
  const int64_t stride = kPacked ? kPanel<T> : queries.token_stride;
  const T* query = queries.data + first * stride;
  for (int64_t p = 0; p < panels; ++p, query += queries.panel_stride, key += key_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      Vec<T> q[Tokens];
#pragma GCC unroll 8
      for (int i = 0; i < Tokens; ++i) q[i] = load<T>(query + i * stride + v * kLanes<T>);
#pragma GCC unroll 16
      for (int j = 0; j < Tokens + Offsets - 1; ++j) {
        const Vec<T> k = load<T>(key + j * kPanel<T> + v * kLanes<T>);
#pragma GCC unroll 8
        for (int i = 0; i < Tokens; ++i)
          if (j - i >= 0 && j - i < Offsets) acc[(j - i) * Tokens + i] += q[i] * k;
      }
    }
  }
  T sums[round_up(Offsets * Tokens, kLanes<T>)];
  sum_lanes<T, Offsets * Tokens>(acc, sums);
  T factors[Tokens];
  for (int i = 0; i < Tokens; ++i) factors[i] = kPacked ? T(1) : queries.factors[first + i];
  for (int d = 0; d < Offsets; ++d)
    for (int i = 0; i < Tokens; ++i) {
      T& z = planes[d * pitch + i];
      const T logit = sums[d * Tokens + i] * factors[i];
      z = accumulate ? z + logit : logit;
    }
}

template <class T>
using GramTile = void (*)(const QueryRow<T>&, int64_t, const T*, int64_t, int64_t, bool, T*, int64_t);

template <class T, int Tokens, bool kPacked, int... I>
GramTile<T> gram_tile_for(int offsets, std::integer_sequence<int, I...>) {
  static constexpr GramTile<T> tiles[] = {gram_tile<T, Tokens, I + 1, kPacked>...};
  return tiles[offsets - 1];
}

// Computes the K planes of one dy.
template <class T>
void gram_row(const Layout<T>& layout, const QueryRow<T>& queries, const T* key_row, bool accumulate, T* planes,
              RowAhead (&ahead)[2]) {
  const int64_t key_stride = layout.key_tokens() * kPanel<T>;
  for_each_offset_group(layout.K, kMaxOffsets, [&](int first, int offsets) {
    constexpr std::make_integer_sequence<int, kMaxOffsets> sizes;
    const GramTile<T> tile = queries.factors ? gram_tile_for<T, kTileTokens, false>(offsets, sizes)
                                             : gram_tile_for<T, kTileTokens, true>(offsets, sizes);
    const GramTile<T> single =
        queries.factors ? gram_tile_for<T, 1, false>(offsets, sizes) : gram_tile_for<T, 1, true>(offsets, sizes);
    const int64_t whole = layout.cols / kTileTokens * kTileTokens;
    for (int64_t x = 0; x < layout.cols; x += x < whole ? kTileTokens : 1) {
      (x < whole ? tile : single)(queries, x, key_row + (x + first) * kPanel<T>, key_stride, layout.panels, accumulate,
                                  planes + first * layout.plane_pitch + x, layout.plane_pitch);
      ahead[0].step(), ahead[1].step();
    }
  });
}

// Logits of one pair of frames of a source, row after row.
template <class T>
class FrameGram {
 public:
  FrameGram(const Layout<T>& layout, Arena& arena)
      : layout_(layout), keys_(layout, arena), queries_(layout, arena) {}

  // planes (+)= weight * logits of the queries in row y of pair (b, pair). Within a pair y ascends from call to call.
  // Positions outside the frame are undefined until `clear_outside`.
  void row(const Tensor& f, Norms<T>& norms, int64_t source, const Window& window, int64_t b, int64_t pair, int64_t y,
           T weight, bool accumulate, T* planes) {
    const int64_t query_frame = pair + window.backward, key_frame = pair + !window.backward;
    keys_.advance(f, norms, source, b, key_frame, y);
    const T* own = norms.row(f, source, b, query_frame, y);
    const QueryRow<T> queries = queries_.row(f, own, b, query_frame, y, weight);
    const int64_t steps = layout_.K * offset_groups(layout_.K, kMaxOffsets) * layout_.tiles();
    ahead_[0].begin(f, layout_.grid, b, key_frame, y + layout_.radius + 1, steps);
    ahead_[1].begin(f, layout_.grid, b, query_frame, y + 1, steps);
    for (int dy = 0; dy < layout_.K; ++dy) {
      T* row_planes = planes + dy * layout_.K * layout_.plane_pitch;
      const int64_t key_y = y + dy - layout_.radius;
      if (key_y >= 0 && key_y < layout_.rows)
        gram_row<T>(layout_, queries, keys_.row(key_y), accumulate, row_planes, ahead_);
    }
  }

 private:
  const Layout<T>& layout_;
  KeyRing<T> keys_;
  Queries<T> queries_;
  RowAhead ahead_[2];
};

// Sets the positions outside the frame to exactly 0: a NaN query times the zero halo is not 0.
template <class T>
void clear_outside(const Layout<T>& layout, int64_t y, T* planes) {
  const int64_t cols = layout.cols, r = layout.radius;
  for (int64_t dy = -r; dy <= r; ++dy)
    for (int64_t dx = -r; dx <= r; ++dx, planes += layout.plane_pitch) {
      const bool row_inside = y + dy >= 0 && y + dy < layout.rows;
      const int64_t begin = !row_inside ? cols : dx < 0 ? (-dx < cols ? -dx : cols) : 0;
      const int64_t end = dx > 0 ? (cols - dx > begin ? cols - dx : begin) : cols;
      clear(planes, begin);
      clear(planes + end, layout.plane_pitch - end);
    }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
