// Asks for an image row of features before it is read, a few tokens at a time while something else is computed: memory and
// the units for products work together, instead of one after the other.
#pragma once

#include "dispatch.h"
#include "simd.h"

namespace lgf {
namespace LGF_ISA {
namespace {

class RowAhead {
 public:
  // Row (b, t, y) of `f`, to be asked for in at most `steps` steps; none outside the frames.
  void begin(const Tensor& f, const Grid& grid, std::int64_t b, std::int64_t t, std::int64_t y, std::int64_t steps) {
    const bool exists = t >= 0 && t < grid.frames && y >= 0 && y < grid.rows;
    const std::int64_t size = size_of(f.dtype);
    token_ = static_cast<const char*>(f.data) + (b * f.stride[0] + t * f.stride[1] + y * f.stride[2]) * size;
    stride_ = f.stride[3] * size;
    bytes_ = f.channels * size;
    tokens_ = exists ? grid.cols : 0;
    steps_ = steps;
    due_ = 0;
  }

  LGF_INLINE void step() {
    for (due_ += tokens_; due_ >= steps_; due_ -= steps_, token_ += stride_)
      for (std::int64_t i = 0; i < bytes_; i += 64) __builtin_prefetch(token_ + i, 0, 2);
  }

 private:
  const char* token_ = nullptr;
  std::int64_t stride_ = 0, bytes_ = 0, tokens_ = 0, steps_ = 1;
  std::int64_t due_ = 0;  // tokens to be asked for, times steps
};

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
