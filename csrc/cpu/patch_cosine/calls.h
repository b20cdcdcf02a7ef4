// Calls of the kernels of patch cosine: the boundary between the bindings and the code of an instruction set.
#pragma once

#include <cstdint>

#include "../common/dispatch.h"

namespace lgf {

// The accumulate type of a call is float64 when `student` is float64, else float32. `void*` has that type, and is
// contiguous, unless stated otherwise.

struct PatchTeacher {
  Tensor features;  // (B, K, H, W, C_m)
  double share;     // length of its part of the concatenated teacher
};

struct PatchForwardCall {
  Grid grid;  // of the student: (B, F, H, W)
  Tensor student;
  const PatchTeacher* teachers;
  std::int64_t teacher_count;
  std::int64_t teacher_frames;  // K; F without weights
  const void* weights;          // (F, K), or null: each frame has its own teacher
  void* distance;               // 1 - r, (B, F, H, W)
  void* reciprocal;             // 1 / s, (B, F, H, W)
  void* gradient;               // G, (B, F, H, W, C) in the type of the student; null if not wanted
  int threads;
};

struct PatchBackwardCall {
  DType dtype;
  std::int64_t tokens, channels;
  const void* gradient;  // G, (tokens, C) of type `dtype`
  const void* scale;     // (tokens)
  void* out;             // (tokens, C) of type `dtype`
  int threads;
};

// Entry points of the kernels of one instruction set.
struct PatchKernels {
  void (*forward)(const PatchForwardCall&);
  void (*backward)(const PatchBackwardCall&);
};

}  // namespace lgf
