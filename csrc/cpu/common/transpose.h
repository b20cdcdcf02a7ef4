// Transposition between the two orders of values per position: token-major (window positions contiguous, as in tensors)
// and planes (tokens contiguous, as in the kernels).
#pragma once

#include "panels.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// target[c * target_pitch + r] = source[r * source_pitch + c]
template <class T>
void transpose(const T* source, int64_t source_pitch, int64_t rows, int64_t cols, T* target, int64_t target_pitch) {
  constexpr int n = kLanes<T>;
  if (rows < n || cols < n) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) target[c * target_pitch + r] = source[r * source_pitch + c];
    return;
  }
  // The last square of a side is moved back inside, where it repeats values, so that there is no remainder.
  for (int64_t r0 = 0; r0 < rows; r0 += n) {
    const int64_t r = r0 + n <= rows ? r0 : rows - n;
    for (int64_t c0 = 0; c0 < cols; c0 += n) {
      const int64_t c = c0 + n <= cols ? c0 : cols - n;
      Vec<T> square[n];
      for (int i = 0; i < n; ++i) square[i] = load<T>(source + (r + i) * source_pitch + c);
      transpose_square<T>(square);
      for (int i = 0; i < n; ++i) store<T>(target + (c + i) * target_pitch + r, square[i]);
    }
  }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
