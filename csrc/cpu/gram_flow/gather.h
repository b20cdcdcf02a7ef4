// Weighted sums of the backward pass, one row of tokens and one neighbouring frame at a time:
//
//     out[x][:] += sum_{dy, dx} coefficient[dy, dx, x] * feature[y + dy][x + dx][:]
//
// Tiling: kTileTokens neighbouring tokens x one panel of channels stay in registers over the rows and offsets of the
// window; a feature vector is loaded once for all tokens whose windows hold it.
#pragma once

#include "../common/ahead.h"
#include "layout.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// The rows of the window that lie inside the frame.
template <class T>
struct WindowRows {
  int count;
  const T* features[kMaxWindow];      // packed key rows, at the panel and token of the first offset
  const T* coefficients[kMaxWindow];  // [token][K*K], at the first position of that dy
};

template <class T, int Tokens, int Offsets>
void gather_tile(const WindowRows<T>& rows, int64_t feature_offset, int64_t coefficient_offset, int64_t positions,
                 T* out) {
  Vec<T> acc[Tokens][kPanelVectors];
#pragma GCC unroll 8
  for (int i = 0; i < Tokens; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) acc[i][v] = load<T>(out + i * kPanel<T> + v * kLanes<T>);
  for (int row = 0; row < rows.count; ++row) {
    const T* feature = opaque(rows.features[row] + feature_offset);
    const T* coefficients[Tokens];
#pragma GCC unroll 8
    for (int i = 0; i < Tokens; ++i)
      coefficients[i] = opaque(rows.coefficients[row] + coefficient_offset + i * positions);
#pragma GCC unroll 16
    for (int j = 0; j < Tokens + Offsets - 1; ++j) {
      Vec<T> f[kPanelVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) f[v] = load<T>(feature + j * kPanel<T> + v * kLanes<T>);
#pragma GCC unroll 8
      for (int i = 0; i < Tokens; ++i) {
        if (j - i < 0 || j - i >= Offsets) continue;
        const Vec<T> c = broadcast<T>(coefficients[i][j - i]);
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) acc[i][v] += c * f[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Tokens; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) store<T>(out + i * kPanel<T> + v * kLanes<T>, acc[i][v]);
}

template <class T>
using GatherTile = void (*)(const WindowRows<T>&, int64_t, int64_t, int64_t, T*);

template <class T, int Tokens, int... I>
GatherTile<T> gather_tile_for(int offsets, std::integer_sequence<int, I...>) {
  static constexpr GatherTile<T> tiles[] = {gather_tile<T, Tokens, I + 1>...};
  return tiles[offsets - 1];
}

// `out` is a packed row without halo; every panel of it is added to.
template <class T>
void gather_row(const Layout<T>& layout, const WindowRows<T>& rows, T* out, RowAhead& one, RowAhead& two) {
  for_each_offset_group(layout.K, [&](int first, int offsets) {
    constexpr std::make_integer_sequence<int, kMaxOffsets> sizes;
    const GatherTile<T> tile = gather_tile_for<T, kTileTokens>(offsets, sizes);
    const GatherTile<T> single = gather_tile_for<T, 1>(offsets, sizes);
    const int64_t whole = layout.cols / kTileTokens * kTileTokens;
    for (int64_t p = 0; p < layout.panels; ++p) {
      for (int64_t x = 0; x < layout.cols; x += x < whole ? kTileTokens : 1) {
        (x < whole ? tile : single)(rows, (p * layout.key_tokens() + x + first) * kPanel<T>,
                                    x * layout.positions() + first, layout.positions(),
                                    out + (p * layout.cols + x) * kPanel<T>);
        one.step(), two.step();
      }
    }
  });
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
