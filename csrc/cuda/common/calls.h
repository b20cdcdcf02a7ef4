// Descriptions that the calls of all families share: tensors, where the work runs, and the norms of features.
#pragma once

#include <cstdint>

#include "../../common/dtype.h"

namespace lgf {
namespace cuda {

using std::int64_t;

// What every feature tensor of one call shares: (batch, frames, rows, cols, ...).
struct Grid {
  int batch, frames, rows, cols;
};

// A (B, T, H, W, C) tensor whose last dimension is contiguous; strides in elements.
struct Tensor {
  const void* data;
  DType dtype;
  int channels;
  int64_t stride[4];
};

struct Stream {
  int device;
  std::uintptr_t handle;
};

// Throws, with a reason for people, unless the kernels of this module can be loaded on a device.
void probe(int device);

// 1 / max(||f||, 1e-6) into `norms`, float64 if `in_double`, else float32. Returns when the work is on the stream.
void reciprocal_norms(const Grid& grid, const Tensor& features, void* norms, bool in_double, const Stream& stream);

}  // namespace cuda
}  // namespace lgf
