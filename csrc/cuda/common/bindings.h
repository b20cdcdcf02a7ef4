// Descriptions of tensors that the bindings of all CUDA families read.
#pragma once

#include <limits>

#include "../../common/bindings.h"
#include "calls.h"

namespace lgf {
namespace bindings {

inline int narrow(const char* what, std::int64_t value) {
  if (value > std::numeric_limits<int>::max()) throw std::invalid_argument(std::string(what) + ": too large");
  return static_cast<int>(value);
}

inline cuda::Grid parse_tokens(const Shape& shape) {
  const auto [batch, frames, rows, cols] = shape;
  return {narrow("batch", batch), narrow("frames", frames), narrow("rows", rows), narrow("cols", cols)};
}

inline cuda::Tensor parse_tensor(const TensorTuple& tuple) {
  check_channels(tuple);
  const auto& [data, dtype, channels, strides] = tuple;
  const auto [b, t, y, x] = strides;
  return {reinterpret_cast<const void*>(data), parse_dtype(dtype), narrow("channels", channels), {b, t, y, x}};
}

}  // namespace bindings
}  // namespace lgf
