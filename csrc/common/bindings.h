// What the bindings of all modules share: how tensors are described, and the checks of what numbers alone can tell.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "dtype.h"

namespace lgf {
namespace bindings {

using Address = std::uintptr_t;
using Shape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;  // batch, frames, rows, cols
using Strides = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using TensorTuple = std::tuple<Address, std::string, std::int64_t, Strides>;  // data, dtype, channels, strides

inline DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  if (name == "float64") return DType::float64;
  throw std::invalid_argument("dtype: expected float32, bfloat16, float16 or float64, got '" + name + "'");
}

inline std::string dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::bfloat16: return "bfloat16";
    case DType::float16: return "float16";
    default: return "float64";
  }
}

// One of two words, as a flag that is true for the first.
inline bool parse_choice(const char* argument, const std::string& given, const char* first, const char* second) {
  if (given == first) return true;
  if (given == second) return false;
  throw std::invalid_argument(std::string(argument) + ": expected '" + first + "' or '" + second + "', got '" + given +
                              "'");
}

inline void check_shape(const Shape& shape) {
  const auto [batch, frames, rows, cols] = shape;
  if (batch < 1 || frames < 2 || rows < 1 || cols < 1)
    throw std::invalid_argument("shape: expected (batch, frames, rows, cols) with frames >= 2 and no empty dimension");
}

inline void check_window(int size, int largest) {
  if (size < 1 || size > largest || size % 2 == 0)
    throw std::invalid_argument("window: expected an odd size from 1 to " + std::to_string(largest) + ", got " +
                                std::to_string(size));
}

inline void check_channels(const TensorTuple& tuple) {
  if (std::get<2>(tuple) < 1) throw std::invalid_argument("channels: expected at least 1");
}

// What a loss asks of its teachers.
inline void check_teachers(const std::vector<TensorTuple>& teachers, const std::vector<double>& weights,
                           double temperature, int window, bool from_logits) {
  if (teachers.empty() || teachers.size() != weights.size())
    throw std::invalid_argument("teacher_weights: expected one weight for each of at least one teacher");
  if (!(temperature > 0) || !std::isfinite(temperature))
    throw std::invalid_argument("temperature: expected a finite number > 0");
  for (const TensorTuple& teacher : teachers) {
    check_channels(teacher);
    if (from_logits && std::get<2>(teacher) != window * window)
      throw std::invalid_argument("teachers: cached logits need window * window channels");
  }
}

inline void* pointer(std::optional<Address> address) { return reinterpret_cast<void*>(address.value_or(0)); }

}  // namespace bindings
}  // namespace lgf
