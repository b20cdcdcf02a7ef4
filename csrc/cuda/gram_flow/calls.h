// Calls of the kernels of Local Gram Flow: the boundary between the bindings and CUDA.
#pragma once

#include "../common/calls.h"

namespace lgf {
namespace cuda {

constexpr int kMaxWindow = 15;
constexpr int kMaxTeachers = 15;

// Tensors of a call and their weights. `norms` are the student's reciprocal norms (B, T, H, W) in the accumulation type,
// an output for the backward; `workspace` has room for as many for each teacher given by features. Both are null for
// similarity "dot".
struct ForwardCall {
  Grid grid;
  int window;
  bool backward;
  Tensor student;
  const Tensor* teachers;
  const double* weights;
  int teacher_count;
  bool teachers_are_logits;
  bool exclude_boundary, squared_error;
  double temperature;
  const void* token_weight;  // (B, T-1, H, W) in the accumulation type: where it is 0, tiles of zeros are written; or null
  void* norms;
  void* workspace;
  void* logits;  // the only output, unless null
  void* values;
  void* gradient;  // by the student's logits, (B, T-1, H, W, K, K+1), or null
  DType gradient_type;
  Stream stream;
};

struct LogitGradientCall {
  const void* g;  // (B, T-1, H, W, K, K+1), or null: direction absent
  DType type;
};

struct BackwardCall {
  Grid grid;
  int window;
  Tensor features;
  LogitGradientCall forward, backward;
  const void* norms;   // reciprocal ones, or null for similarity "dot"
  const void* scales;  // of tokens (B, T-1, H, W), or null
  bool skip_zeros;     // tokens of scale 0 give nothing, in whole tiles even where their g or the features are NaN
  const void* scale;   // one number, or null
  double factor;
  void* gradient;
  Stream stream;
};

// They return when the work is on the stream.
void forward(const ForwardCall& call);
void backward(const BackwardCall& call);

}  // namespace cuda
}  // namespace lgf
