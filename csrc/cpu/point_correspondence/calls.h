// Calls of the kernels of point correspondence: the boundary between the bindings and the code of an instruction set.
#pragma once

#include <cstdint>

#include "../common/dispatch.h"

namespace lgf {

// The accumulate type of a call is float64 when `features` is float64, else float32. `void*` has that type, and is
// contiguous, unless stated otherwise.

struct PointsForwardCall {
  Grid grid;
  Tensor features;
  const void* queries;  // f^ / temperature, (B, N, C)
  std::int64_t count;   // N
  std::int64_t window;  // 0 for none
  void* places;         // (B, N, T, 2)
  void* state;          // (B, N, T, 1): lse; with a window (B, N, T, 2): lse, token of the maximum
  int threads;
};

struct PointsBackwardCall {
  Grid grid;
  Tensor features;
  const void* queries;
  std::int64_t count;
  std::int64_t window;
  const void* places;
  const void* state;
  const void* grad_places;  // (B, N, T, 2)
  void* grad_features;      // (B, T, H, W, C) in the type of the features
  void* grad_queries;       // of f^, times the temperature, (B, N, C)
  int threads;
};

// Entry points of the kernels of one instruction set.
struct PointKernels {
  void (*forward)(const PointsForwardCall&);
  void (*backward)(const PointsBackwardCall&);
};

}  // namespace lgf
