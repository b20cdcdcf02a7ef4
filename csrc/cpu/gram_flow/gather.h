// Weighted sums of the backward pass, one row of tokens and one neighbouring frame at a time:
//
//     out[x][:] += sum_{dy, dx} coefficient[dy, dx, x] * feature[y + dy][x + dx][:]
//
// Tiling: kTileTokens neighbouring tokens x kGatherPanels panels of channels stay in registers over the rows and offsets of the
// window; a feature vector is loaded once for all tokens whose windows hold it, a coefficient once for all channels.
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

// `feature_offset` and `out` are of the first token in the first panel, `coefficient_offset` of that token.
template <class T, int Tokens, int Panels, int Offsets>
void gather_tile(const Layout<T>& layout, const WindowRows<T>& rows, int64_t feature_offset, int64_t coefficient_offset,
                 T* out) {
  constexpr int kVectors = Panels * kPanelVectors;
  // The place of a vector of a tile's first token, in panels so far apart.
  const auto place = [](int v, int64_t panel_stride) {
    return v / kPanelVectors * panel_stride + v % kPanelVectors * kLanes<T>;
  };
  const int64_t feature_stride = layout.key_tokens() * kPanel<T>, out_stride = layout.cols * kPanel<T>;
  Vec<T> acc[Tokens][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < Tokens; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[i][v] = load<T>(out + i * kPanel<T> + place(v, out_stride));
  for (int row = 0; row < rows.count; ++row) {
    const T* feature = opaque(rows.features[row] + feature_offset);
    const T* coefficients[Tokens];
#pragma GCC unroll 8
    for (int i = 0; i < Tokens; ++i)
      coefficients[i] = opaque(rows.coefficients[row] + coefficient_offset + i * layout.positions());
#pragma GCC unroll 16
    for (int j = 0; j < Tokens + Offsets - 1; ++j) {
      Vec<T> c[Tokens];
#pragma GCC unroll 8
      for (int i = 0; i < Tokens; ++i)
        if (j - i >= 0 && j - i < Offsets) c[i] = broadcast<T>(coefficients[i][j - i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec<T> f = load<T>(feature + j * kPanel<T> + place(v, feature_stride));
#pragma GCC unroll 8
        for (int i = 0; i < Tokens; ++i)
          if (j - i >= 0 && j - i < Offsets) acc[i][v] += c[i] * f;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Tokens; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store<T>(out + i * kPanel<T> + place(v, out_stride), acc[i][v]);
}

template <class T>
using GatherTile = void (*)(const Layout<T>&, const WindowRows<T>&, int64_t, int64_t, T*);

template <class T, int Tokens, int Panels, int... I>
GatherTile<T> gather_tile_for(int offsets, std::integer_sequence<int, I...>) {
  static constexpr GatherTile<T> tiles[] = {gather_tile<T, Tokens, Panels, I + 1>...};
  return tiles[offsets - 1];
}

// Adds to some panels of a row, from number p on.
template <class T, int Panels>
void gather_panels(const Layout<T>& layout, const WindowRows<T>& rows, int64_t p, T* out, RowAhead (&ahead)[2]) {
  for_each_offset_group(layout.K, kMaxGatherOffsets, [&](int first, int offsets) {
    constexpr std::make_integer_sequence<int, kMaxGatherOffsets> sizes;
    const GatherTile<T> tile = gather_tile_for<T, kTileTokens, Panels>(offsets, sizes);
    const GatherTile<T> single = gather_tile_for<T, 1, Panels>(offsets, sizes);
    const int64_t whole = layout.cols / kTileTokens * kTileTokens;
    for (int64_t x = 0; x < layout.cols; x += x < whole ? kTileTokens : 1) {
      (x < whole ? tile : single)(layout, rows, (p * layout.key_tokens() + x + first) * kPanel<T>,
                                  x * layout.positions() + first, out + (p * layout.cols + x) * kPanel<T>);
      ahead[0].step(), ahead[1].step();
    }
  });
}

// Returns how often gather_row asks for what is ahead.
template <class T>
int64_t gather_steps(const Layout<T>& layout) {
  const int64_t groups = layout.panels / kGatherPanels + layout.panels % kGatherPanels;
  return groups * offset_groups(layout.K, kMaxGatherOffsets) * layout.tiles();
}

// `out` is a packed row without halo; every panel of it is added to.
template <class T>
void gather_row(const Layout<T>& layout, const WindowRows<T>& rows, T* out, RowAhead (&ahead)[2]) {
  int64_t p = 0;
  for (; p + kGatherPanels <= layout.panels; p += kGatherPanels)
    gather_panels<T, kGatherPanels>(layout, rows, p, out, ahead);
  for (; p < layout.panels; ++p) gather_panels<T, 1>(layout, rows, p, out, ahead);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
