// Element types of the tensors that cross the Python boundary.
//
// Everything here has internal linkage: these helpers are compiled once per instruction set, and the linker must not
// replace a baseline copy by one built for a newer CPU.
#pragma once

#include <cstdint>

namespace lgf {

enum class DType : int { float32, bfloat16, float16, float64 };

// Storage types. They are converted before any arithmetic.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

namespace {

template <class Type>
struct TypeTag {
  using type = Type;
};

// Calls `function(TypeTag<storage type of dtype>{})`.
template <class Function>
inline void with_storage_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float32: function(TypeTag<float>{}); break;
    case DType::bfloat16: function(TypeTag<BFloat16>{}); break;
    case DType::float16: function(TypeTag<Float16>{}); break;
    case DType::float64: function(TypeTag<double>{}); break;
  }
}

// Returns the bytes of an element.
inline int size_of(DType dtype) {
  int bytes = 0;
  with_storage_type(dtype, [&](auto tag) { bytes = sizeof(typename decltype(tag)::type); });
  return bytes;
}

}  // namespace
}  // namespace lgf
