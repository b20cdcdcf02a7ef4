// Checks of the arguments of Local Gram Flow, the same in every module.
#pragma once

#include <cmath>

#include "bindings.h"

namespace lgf {
namespace bindings {

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

// Checks what a loss requires of its teachers.
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

}  // namespace bindings
}  // namespace lgf
