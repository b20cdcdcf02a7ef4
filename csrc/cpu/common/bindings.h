// Shared code of the bindings of the CPU kernels: descriptions of tensors as the kernels take them.
#pragma once

#include "../../common/bindings.h"
#include "dispatch.h"

namespace lgf {
namespace bindings {

inline Grid parse_grid(const Shape& shape) {
  const auto [batch, frames, rows, cols] = shape;
  if (batch < 1 || frames < 1 || rows < 1 || cols < 1)
    throw std::invalid_argument("shape: expected (batch, frames, rows, cols) with no empty dimension");
  return {batch, frames, rows, cols};
}

inline Tensor parse_tensor(const TensorTuple& tuple) {
  check_channels(tuple);
  const auto& [data, dtype, channels, strides] = tuple;
  const auto [b, t, y, x] = strides;
  return {reinterpret_cast<const void*>(data), parse_dtype(dtype), channels, {b, t, y, x}};
}

}  // namespace bindings
}  // namespace lgf
