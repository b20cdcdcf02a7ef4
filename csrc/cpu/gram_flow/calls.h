// Calls of the kernels of Local Gram Flow: the boundary between the bindings and the code of an instruction set.
#pragma once

#include <cstdint>

#include "../common/dispatch.h"

namespace lgf {

constexpr int kMaxWindow = 15;

struct Window {
  int size;        // odd, at most kMaxWindow; offsets run over [-size/2, size/2]^2
  bool cosine;     // L2-normalise the features first
  bool backward;   // entry t has its queries in frame t+1 and its keys in frame t
};

// The accumulate type of a call is float64 when `features` / `student` is float64, else float32.
// `void*` outputs and coefficients have that type unless stated otherwise.

struct GramFlowCall {
  Grid grid;
  Window window;
  Tensor features;
  void* logits;  // (B, T-1, H, W, K*K)
  int threads;
};

struct Teacher {
  Tensor tensor;  // features, or cached logits (B, T-1, H, W, K*K)
  double weight;
};

struct LgfKlCall {
  Grid grid;
  Window window;
  Tensor student;
  const Teacher* teachers;
  std::int64_t teacher_count;
  bool teachers_are_logits;
  double temperature;
  bool exclude_boundary;  // outside positions leave the softmax; otherwise they stay with logit 0
  bool squared_error;     // mean squared difference of the logits instead of KL
  const void* weights;    // of the tokens (B, T-1, H, W), or null: image rows of zeros are not computed
  void* kl;               // (B, T-1, H, W), without the weights; 0 where not computed
  void* g;                // d kl / d student logits, (B, T-1, H, W, K*K), likewise; or null
  int threads;
};

// d/dlogits of one direction: coefficients g, optionally scaled per token. `g` null: direction absent.
struct LogitGradient {
  const void* g;      // (B, T-1, H, W, K*K)
  const void* scale;  // (B, T-1, H, W) or null for 1
};

struct GramBackwardCall {
  Grid grid;
  Window window;  // `backward` is not used: both directions are given
  Tensor features;
  LogitGradient forward, backward;
  bool skip_zeros;  // image rows of queries of scale 0 give nothing, even where their g or the features are NaN
  void* grad;  // (B, T, H, W, C) contiguous, in the type of the features
  int threads;
};

// Entry points of the kernels of one instruction set.
struct GramFlowKernels {
  void (*local_gram_flow)(const GramFlowCall&);
  void (*lgf_kl_forward)(const LgfKlCall&);
  void (*gram_backward)(const GramBackwardCall&);
};

}  // namespace lgf
