// Gradient from its parts: their sum, less its component along the features,  dz = (I - z^ z^T) dz^; without norms their sum.
#pragma once

#include "../common/norms.h"
#include "calls.h"

namespace lgf {
namespace cuda {

// A warp takes a token. A part may be the gradient itself.
template <class T>
struct Project {
  using Params = ProjectCall;
  static constexpr int kThreads = 256, kBlocksPerSm = 4, kTokens = kThreads / 32;

  static int64_t blocks(const Params& p) { return (int64_t(p.grid.batch) * p.grid.cols + kTokens - 1) / kTokens; }

  static LGF_DEVICE void run(const Params& p, char*) {
    const int64_t token = int64_t(block_index()) * kTokens + thread_index() / 32, b = token / p.grid.cols;
    if (b >= p.grid.batch) return;  // a whole warp
    const Tensor& f = p.student;
    const int64_t features = b * f.stride[0] + token % p.grid.cols * f.stride[3], out = token * f.channels;
    const T r = p.norms ? static_cast<const T*>(p.norms)[token] : T(0);
    const T scale = p.row_scale ? static_cast<const T*>(p.row_scale)[token] : T(1);
    const int lane = thread_index() % 32;
    T along = 0;
    for (int c = lane; c < f.channels; c += 32) along += sum(p, out + c) * load<T>(f.data, f.dtype, features + c) * r;
    for (int mask = 16; mask > 0; mask /= 2) along += shuffle_xor(along, mask);
    if (is_short(r)) along = 0;
    for (int c = lane; c < f.channels; c += 32) {
      const T unit = load<T>(f.data, f.dtype, features + c) * r;
      static_cast<T*>(p.gradient)[out + c] = scale * (sum(p, out + c) - along * unit);
    }
  }

 private:
  static LGF_DEVICE T sum(const Params& p, int64_t at) {
    const T* parts = static_cast<const T*>(p.parts) + at;
    T sum = parts[0];
    for (int split = 1; split < p.splits; ++split) sum += parts[split * p.part_stride];
    return sum;
  }
};

}  // namespace cuda
}  // namespace lgf
