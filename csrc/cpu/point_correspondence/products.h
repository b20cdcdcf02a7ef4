// Products of matrices that are in cache: c (+)= a b, a by rows and steps of any stride, b in panels.
//
// Tiling: kTileRows rows x one panel of columns stay in registers while the steps pass; a vector of b, once loaded, serves
// all rows, and an element of a, once broadcast, all vectors of the panel.
#pragma once

#include "../common/pack.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// With 32 vector registers 6 x 4 accumulators, with 16 6 x 2.
constexpr int kTileRows = 6;

template <class T>
struct Rows {
  const T* data;
  int64_t stride;  // from row to row
  int64_t step;    // from element to element of a row
};

// [panel][step][kPanel]
template <class T>
struct Panels {
  T* data;
  int64_t stride;  // from panel to panel
};

// Where the result goes: element (row, panel) is kPanel numbers.
template <class T>
struct Target {
  T* data;
  int64_t row_stride;
  int64_t panel_stride;
};

template <class T, int Count>
void product_tile(const T* a, int64_t stride, int64_t step, const T* b, int64_t steps, bool accumulate, T* c,
                  int64_t c_stride) {
  Vec<T> acc[Count][kPanelVectors] = {};
  const T* row[Count];
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) row[i] = opaque(a + i * stride);
  for (int64_t k = 0; k < steps; ++k, b += kPanel<T>) {
    Vec<T> panel[kPanelVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) panel[v] = load<T>(b + v * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) {
      const Vec<T> x = broadcast<T>(row[i][k * step]);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) acc[i][v] += x * panel[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      T* target = c + i * c_stride + v * kLanes<T>;
      store<T>(target, accumulate ? load<T>(target) + acc[i][v] : acc[i][v]);
    }
}

template <class T>
using ProductTile = void (*)(const T*, int64_t, int64_t, const T*, int64_t, bool, T*, int64_t);

template <class T, int... I>
ProductTile<T> product_tile_for(int64_t rows, std::integer_sequence<int, I...>) {
  static constexpr ProductTile<T> tiles[] = {product_tile<T, I + 1>...};
  return tiles[rows - 1];
}

template <class T>
void product(const Rows<T>& a, int64_t rows, int64_t steps, const Panels<T>& b, int64_t panels, bool accumulate,
             const Target<T>& c) {
  constexpr std::make_integer_sequence<int, kTileRows> sizes;
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const int64_t count = rows - i < kTileRows ? rows - i : kTileRows;
      product_tile_for<T>(count, sizes)(a.data + i * a.stride, a.stride, a.step, b.data + p * b.stride, steps, accumulate,
                                        c.data + i * c.row_stride + p * c.panel_stride, c.row_stride);
    }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
