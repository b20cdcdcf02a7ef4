// Products of blocks that are in cache, by tiles that stay in registers:
//
//     c[i, j] (+)= sum_k a[i, k] b[k, j]
//
// b is in panels of kColumns columns, [panel][k][kColumns]. Rows and steps of a are at distances that are known when this
// is compiled, so that all rows of a tile are read through one address. A panel of b stays in the first cache for all rows.
#pragma once

#include "../common/transpose.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// A tile of 14 x 2 sums leaves room for 2 vectors of b and 1 of a in 32 registers, one of 6 x 2 in 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;

template <class T>
constexpr int kColumns = kTileVectors * kLanes<T>;

// Where to read a: element (row, step) of section s is data[s * section + row * Row + step * Step].
template <class T, int Row, int Step>
struct Factor {
  const T* data;
  int64_t section;   // from one section of steps to the next
  int64_t sections;
  int64_t steps;     // of a section

  LGF_INLINE Factor from(int64_t row) const { return {data + row * Row, section, sections, steps}; }
};

template <class T, int Row, int Step, int Count>
LGF_INLINE void multiply(const Factor<T, Row, Step>& a, const T* b, Vec<T> (&sums)[Count][kTileVectors]) {
  const T* section = a.data;
  for (int64_t s = 0; s < a.sections; ++s, section += a.section) {
    const T* x = section;
    for (int64_t k = 0; k < a.steps; ++k, x += Step, b += kColumns<T>) {
      Vec<T> panel[kTileVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) panel[v] = load<T>(b + v * kLanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) {
        const Vec<T> factor = broadcast<T>(x[i * Row]);
#pragma GCC unroll 4
        for (int v = 0; v < kTileVectors; ++v) sums[i][v] += factor * panel[v];
      }
    }
  }
}

// Writes `columns` > 0 of a tile; `accumulate`: adds them.
template <class T, int Count>
LGF_INLINE void write_tile(const Vec<T> (&sums)[Count][kTileVectors], bool accumulate, T* c, int64_t c_stride,
                           int64_t columns) {
  if (columns >= kColumns<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        T* target = c + i * c_stride + v * kLanes<T>;
        store<T>(target, accumulate ? load<T>(target) + sums[i][v] : sums[i][v]);
      }
    return;
  }
  T row[kColumns<T>];
#pragma GCC unroll 16
  for (int i = 0; i < Count; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) store<T>(row + v * kLanes<T>, sums[i][v]);
    for (int64_t j = 0; j < columns; ++j) {
      T& target = c[i * c_stride + j];
      target = accumulate ? target + row[j] : row[j];
    }
  }
}

// Fetches the tile that sums will be added to, while they are made.
template <class T, int Count>
LGF_INLINE void fetch_tile(const T* c, int64_t c_stride) {
#pragma GCC unroll 16
  for (int i = 0; i < Count; ++i) {
    __builtin_prefetch(c + i * c_stride, 1);
    __builtin_prefetch(c + i * c_stride + kColumns<T> - 1, 1);
  }
}

template <class T, int Row, int Step, int Count>
void product_tile(const Factor<T, Row, Step>& a, const T* b, bool accumulate, T* c, int64_t c_stride, int64_t columns) {
  if (accumulate) fetch_tile<T, Count>(c, c_stride);
  Vec<T> sums[Count][kTileVectors] = {};
  multiply<T, Row, Step, Count>(a, b, sums);
  write_tile<T, Count>(sums, accumulate, c, c_stride, columns);
}

template <class T, int Row, int Step>
using ProductTile = void (*)(const Factor<T, Row, Step>&, const T*, bool, T*, int64_t, int64_t);

template <class T, int Row, int Step, int... I>
ProductTile<T, Row, Step> product_tile_for(int64_t rows, std::integer_sequence<int, I...>) {
  static constexpr ProductTile<T, Row, Step> tiles[] = {product_tile<T, Row, Step, I + 1>...};
  return tiles[rows - 1];
}

// c (+)= a b, with `rows` rows of a, and `columns` columns of b in panels that are `b_stride` apart.
template <class T, int Row, int Step>
void product(const Factor<T, Row, Step>& a, int64_t rows, const T* b, int64_t b_stride, int64_t columns, bool accumulate,
             T* c, int64_t c_stride) {
  constexpr std::make_integer_sequence<int, kTileRows> sizes;
  for (int64_t j = 0; j < columns; j += kColumns<T>, b += b_stride)
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const auto tile = product_tile_for<T, Row, Step>(rows - i < kTileRows ? rows - i : kTileRows, sizes);
      tile(a.from(i), b, accumulate, c + i * c_stride + j, c_stride, columns - j);
    }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
