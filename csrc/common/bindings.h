// Shared code of the bindings of all modules and families: registration, descriptions of tensors, checks of numbers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "dtype.h"
#include "interface.h"

namespace lgf {
namespace bindings {

// A family's functions, for the module's main file to add. A family's bindings.cpp has one:
//
//     const Family family([](pybind11::module_& m) { m.def(...); });
struct Family {
  using Define = void (*)(pybind11::module_&);

  explicit Family(Define define) { all().push_back(define); }

  static std::vector<Define>& all() {
    static std::vector<Define> registered;
    return registered;
  }
};

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

// Returns true for the first of two words, false for the second.
inline bool parse_choice(const char* argument, const std::string& given, const char* first, const char* second) {
  if (given == first) return true;
  if (given == second) return false;
  throw std::invalid_argument(std::string(argument) + ": expected '" + first + "' or '" + second + "', got '" + given +
                              "'");
}

inline void check_channels(const TensorTuple& tuple) {
  if (std::get<2>(tuple) < 1) throw std::invalid_argument("channels: expected at least 1");
}

inline void* pointer(std::optional<Address> address) { return reinterpret_cast<void*>(address.value_or(0)); }

}  // namespace bindings
}  // namespace lgf
