// From the similarities of a tile to its part of the loss and the coefficients of its gradient.
#pragma once

#include "tokens.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Distance of the rows of a tile in memory: a cache line more than a block, so that the rows of a column are in different
// sets of a cache.
template <class T>
constexpr int kPitch = kBlock<T> + 64 / static_cast<int>(sizeof(T));

// Weights of a tile: for each frame of its rows a line with the weight of each of its columns, 0 past the last.
template <class T>
void write_weights(const RelationCall& call, const Part& rows, const Part& columns, T* lines) {
  const int64_t N = call.grid.cols, frames = call.grid.frames;
  for (int64_t f = rows.first / N; f <= (rows.first + rows.count - 1) / N; ++f, lines += kPitch<T>) {
    const T* of_frame = static_cast<const T*>(call.weights) + f * frames;
    clear(lines, kPitch<T>);
    int64_t g = columns.first / N, left = (g + 1) * N - columns.first;
    for (int64_t j = 0; j < columns.count; ++j, --left) {
      if (left == 0) ++g, left = N;
      lines[j] = of_frame[g];
    }
  }
}

// Replaces similarities below 0 by 0, -inf by NaN, and changes their signs.
template <class T>
void clamp_and_negate(T* tile, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, tile += kPitch<T>)
    for (int64_t j = 0; j < columns; j += kLanes<T>) {
      const Vec<T> s = load<T>(tile + j);
      store<T>(tile + j, s * (s >= T(0) ? broadcast(T(-1)) : Vec<T>{}));
    }
}

template <class T>
LGF_INLINE Vec<T> where(Mask<T> condition, Vec<T> v) {  // v or 0
  return (Vec<T>)(condition & (Mask<T>)v);
}

// The l1 distance of one vector of differences, weighted, and its coefficient in place of the difference.
template <class T>
LGF_INLINE Vec<T> absolute(Vec<T>& e, Vec<T> w, T margin) {
  const Mask<T> sign = (Mask<T>)broadcast(-T(0)) & (Mask<T>)e;
  Vec<T> d = (Vec<T>)((Mask<T>)e ^ sign) - margin;
  d = d < T(0) ? Vec<T>{} : d;  // NaN stays
  e = where<T>(d > T(0), (Vec<T>)((Mask<T>)w | sign));
  return w * d;
}

// The squared distance likewise.
template <class T>
LGF_INLINE Vec<T> square(Vec<T>& e, Vec<T> w) {
  const Vec<T> half = w * e, distance = half * e;
  e = half + half;
  return distance;
}

// Replaces the differences in `tile` by coefficients and returns the weighted sum of the distances. Where `student` is not
// null, it has the student's similarities, to be clamped, and `tile` the teacher's, clamped and negated.
template <class T, bool Squared, bool Clamped>
double distances(const RelationCall& call, const Part& rows, const Part& columns, const T* weights, const T* student,
                 T* tile) {
  const int64_t N = call.grid.cols, first = rows.first / N;
  const T margin = static_cast<T>(call.margin);
  double total = 0;
  for (int64_t i = 0; i < rows.count; ++i, tile += kPitch<T>) {
    const T* w_row = weights + ((rows.first + i) / N - first) * kPitch<T>;
    Vec<T> sums{};
    for (int64_t j = 0; j < columns.count; j += kLanes<T>) {
      const Vec<T> w = load<T>(w_row + j);
      Vec<T> e = load<T>(tile + j);
      Mask<T> kept{};
      if constexpr (Clamped) {
        const Vec<T> s = load<T>(student + i * kPitch<T> + j);
        kept = s >= T(0);
        e += s * (kept ? broadcast(T(1)) : Vec<T>{});
      }
      e = where<T>(w != T(0), e);  // a frame without weight must not add NaN
      sums += Squared ? square<T>(e, w) : absolute<T>(e, w, margin);
      if constexpr (Clamped) e = where<T>(kept, e);
      store<T>(tile + j, e);
    }
    total += static_cast<double>(sum_of_lanes<T>(sums));
  }
  return total;
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
