// Which tiles are computed: those that a token counts in, one whose weight is not 0. All others are zeros, whatever the features
// are: borders of shards and masked parts of videos cost almost nothing.
//
// Every warp reads the weights of the whole box, which costs less than a barrier, and so all threads of a block agree.
#pragma once

#include "../common/tensor.h"

namespace lgf {
namespace cuda {

// Returns whether a token in a box of at most 32 columns has a weight, of (B, T-1, H, W), other than 0. NaN is other than 0.
template <class T>
LGF_DEVICE bool any_counts(const void* weights, const Grid& grid, int64_t pair, int y0, int x0, int rows, int cols) {
  const int lane = thread_index() % 32, x = x0 + lane;
  const int first = y0 < 0 ? 0 : y0, end = y0 + rows < grid.rows ? y0 + rows : grid.rows;
  const T* weight = static_cast<const T*>(weights) + token_number(grid, pair, first, x);
  int found = 0;
  if (lane < cols && x >= 0 && x < grid.cols)
    for (int y = first; y < end; ++y, weight += grid.cols) found |= *weight != T(0);
  for (int mask = 16; mask > 0; mask /= 2) found |= shuffle_xor(found, mask);
  return found;
}

}  // namespace cuda
}  // namespace lgf
