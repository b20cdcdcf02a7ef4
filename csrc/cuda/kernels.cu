// Which kernels a call runs: the reciprocal norms first, then the kernel tuned for the call, or the one that takes all.
#include "lgf.h"

#include "backward_any.h"
#include "backward_band.h"
#include "forward_any.h"
#include "forward_band.h"
#include "norms.h"

namespace lgf {
namespace cuda {
namespace {

// The reciprocal norms of one of a call's features, number `index` of the workspace, or null without one.
template <class T>
const void* norms(const Grid& grid, const Tensor& features, void* workspace, int index, const Stream& stream) {
  if (!workspace) return nullptr;
  T* out = static_cast<T*>(workspace) + int64_t(index) * grid.batch * grid.frames * grid.rows * grid.cols;
  launch<Norms<T>>(Norms<T>::blocks(grid), 0, stream.handle, {grid, features, in_pieces(features), out});
  return out;
}

template <class T>
ForwardParams forward_params(const ForwardCall& call) {
  ForwardParams p = {};
  p.grid = call.grid;
  p.window = call.window;
  p.backward = call.backward;
  p.cached = call.teachers_are_logits;
  p.count = call.teacher_count + 1;
  for (int m = 0; m < p.count; ++m) {
    const bool student = m == call.teacher_count, features = student || !p.cached;
    const Tensor& tensor = student ? call.student : call.teachers[m];
    p.sources[m] = {tensor, features ? norms<T>(call.grid, tensor, call.workspace, p.cached ? 0 : m, call.stream) : nullptr,
                    student ? 1.0 : call.weights[m]};
  }
  p.divergence = {call.exclude_boundary, call.squared_error, 1 / call.temperature};
  p.logits = call.logits;
  p.values = call.values;
  p.gradient = call.gradient;
  p.gradient_type = call.gradient_type;
  return p;
}

bool suits_band(const ForwardCall& call) {
  bool suits = call.window == band::kWindow && in_pieces(call.student);
  for (int m = 0; m < call.teacher_count && !call.teachers_are_logits; ++m)
    suits = suits && in_pieces(call.teachers[m]) && call.teachers[m].dtype == call.student.dtype;
  return suits;
}

template <class Half>
void band_forward(const ForwardCall& call) {
  using Kernel = BandForward<Half>;
  launch<Kernel>(tiles(call.grid, call.grid.frames - 1, band::kRows, band::kCols), Kernel::kSharedBytes,
                 call.stream.handle, forward_params<float>(call));
}

template <class T>
void any_forward(const ForwardCall& call) {
  using Kernel = AnyForward<T>;
  launch<Kernel>(tiles(call.grid, call.grid.frames - 1, AnyTile<T>::kRows, AnyTile<T>::kCols),
                 Kernel::shared_bytes(call.window), call.stream.handle, forward_params<T>(call));
}

template <class T>
BackwardParams backward_params(const BackwardCall& call) {
  const auto direction = [](const LogitGradientCall& g) -> LogitGradient {
    return {g.g, g.type, g.scale, g.scale_is_one_number ? 0 : 1};
  };
  return {call.grid,
          call.window,
          call.features,
          norms<T>(call.grid, call.features, call.workspace, 0, call.stream),
          direction(call.forward),
          direction(call.backward),
          call.gradient};
}

template <class Half>
void band_backward(const BackwardCall& call) {
  using Kernel = BandBackward<Half>;
  launch<Kernel>(tiles(call.grid, call.grid.frames, band::kRows, band::kCols), Kernel::kSharedBytes, call.stream.handle,
                 backward_params<float>(call));
}

template <class T>
void any_backward(const BackwardCall& call) {
  using Kernel = AnyBackward<T>;
  launch<Kernel>(tiles(call.grid, call.grid.frames, AnyTile<T>::kRows, AnyTile<T>::kCols),
                 Kernel::shared_bytes(call.window), call.stream.handle, backward_params<T>(call));
}

}  // namespace

void forward(const ForwardCall& call) {
  use_device(call.stream.device);
  if (suits_band(call))
    return call.student.dtype == DType::bfloat16 ? band_forward<BFloat16>(call) : band_forward<Float16>(call);
  return call.student.dtype == DType::float64 ? any_forward<double>(call) : any_forward<float>(call);
}

void backward(const BackwardCall& call) {
  use_device(call.stream.device);
  if (call.window == band::kWindow && in_pieces(call.features))
    return call.features.dtype == DType::bfloat16 ? band_backward<BFloat16>(call) : band_backward<Float16>(call);
  return call.features.dtype == DType::float64 ? any_backward<double>(call) : any_backward<float>(call);
}

}  // namespace cuda
}  // namespace lgf
