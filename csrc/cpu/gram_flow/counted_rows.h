// Image rows of queries that are computed: those with a token whose weight is not 0.
#pragma once

#include "layout.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Rows are numbered through (B, T-1, H).
template <class T>
class CountedRows {
 public:
  // `weights` (B, T-1, H, W), or null: all rows are counted.
  CountedRows(const void* weights, const Grid& grid)
      : all_(!weights), counted_(static_cast<std::size_t>(all_ ? 1 : grid.batch * (grid.frames - 1) * grid.rows)) {
    if (all_) return;
    const T* weight = static_cast<const T*>(weights);
    for (int64_t row = 0; row < grid.batch * (grid.frames - 1) * grid.rows; ++row) {
      bool any = false;
      for (int64_t x = 0; x < grid.cols; ++x) any |= *weight++ != T(0);  // NaN is no 0
      counted_.data()[row] = any;
    }
  }

  bool operator[](int64_t row) const { return all_ || counted_.data()[row]; }

 private:
  bool all_;
  Scratch counted_;
};

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
