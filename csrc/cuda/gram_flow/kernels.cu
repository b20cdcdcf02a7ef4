// Choice of the kernels of a call: the one tuned for it, or the norms and then the general one.
#include "backward_any.h"
#include "backward_band.h"
#include "calls.h"
#include "forward_any.h"
#include "forward_band.h"

namespace lgf {
namespace cuda {
namespace {

// Returns whether tokens can be copied in pieces, and an int counts the pieces of a frame.
bool counts_in_pieces(const Tensor& f, const Grid& grid) {
  const int64_t last = (grid.rows - 1) * f.stride[2] + (grid.cols - 1) * f.stride[3];
  return in_pieces(f) && last / 8 < INT32_MAX;
}

ForwardParams forward_params(const ForwardCall& call) {
  ForwardParams p = {};
  p.grid = call.grid;
  p.window = call.window;
  p.backward = call.backward;
  p.cosine = call.norms != nullptr;
  p.cached = call.teachers_are_logits;
  p.count = call.teacher_count + 1;
  for (int m = 0; m < p.count; ++m) {
    const bool student = m == call.teacher_count;
    p.sources[m] = {student ? call.student : call.teachers[m], nullptr, student ? 1.0 : call.weights[m]};
  }
  p.token_weight = call.token_weight;
  p.divergence = {call.exclude_boundary, call.squared_error, 1 / call.temperature};
  p.logits = call.logits;
  p.values = call.values;
  p.gradient = call.gradient;
  p.gradient_type = call.gradient_type;
  p.kept_norms = call.norms;
  return p;
}

// Returns whether the tuned kernels read and write a gradient by the logits.
bool suits_band(const void* gradient, DType type) {
  return !gradient || (aligned(gradient) && (type == DType::bfloat16 || type == DType::float32));
}

bool suits_band(const ForwardCall& call) {
  bool suits = call.window == band::kWindow && counts_in_pieces(call.student, call.grid) &&
               suits_band(call.gradient, call.gradient_type);
  for (int m = 0; m < call.teacher_count && !call.teachers_are_logits; ++m)
    suits = suits && counts_in_pieces(call.teachers[m], call.grid) && call.teachers[m].dtype == call.student.dtype;
  return suits;
}

// Returns the number of tokens along one side of a frame that the halos of all tiles hold together.
int64_t reached(int size, int tile) {
  int64_t sum = 0;
  for (int first = 0; first < size; first += tile) {
    const int end = first + tile + band::kRadius;
    sum += (end < size ? end : size) - (first < band::kRadius ? 0 : first - band::kRadius);
  }
  return sum;
}

// Returns the time of a launch with tiles of `rows` rows, in lines of 64 bytes through the shared memory of an SM: the larger
// of what passes through that of the busiest SM, and of what comes from L2, which has a fifth of that rate for an SM while
// all SMs read. A token of the tile passes 10 times, most of them as an operand of its warp's products.
double work(const Grid& grid, int frames, int rows, int sms) {
  const double frame = double(grid.rows) * grid.cols;
  const double halos = double(reached(grid.rows, rows)) * reached(grid.cols, band::kCols);
  const int64_t blocks = tiles(grid, frames, rows, band::kCols), busiest = (blocks + sms - 1) / sms;
  const double passing = busiest * ((rows + 2.0 * band::kRadius) * band::kHaloCols + 10.0 * rows * band::kCols);
  const double arriving = 5.0 * (halos + frame) * frames * grid.batch / sms;
  return passing > arriving ? passing : arriving;
}

// Low tiles read more for each token, but distribute a small grid more evenly.
bool takes_low_tiles(const Grid& grid, int frames, const Stream& stream) {
  const int sms = multiprocessors(stream.device).count;
  return work(grid, frames, 4, sms) < work(grid, frames, 8, sms);
}

// High tiles read less, but one of them fills an SM. They are for SMs without room for two others, whose beginnings and
// ends would overlap.
template <class Half>
bool takes_high_tiles(const Grid& grid, int frames, const Stream& stream) {
  constexpr int kReserved = 1024;  // of each block
  const Multiprocessors sms = multiprocessors(stream.device);
  return sms.shared_bytes < 2 * (BandForward<Half, 8>::kSharedBytes + kReserved) &&
         sms.shared_bytes_of_block >= BandForward<Half, 16>::kSharedBytes &&
         work(grid, frames, 16, sms.count) < work(grid, frames, 8, sms.count);
}

template <class Kernel>
void launch_tiles(const Grid& grid, int frames, const Stream& stream, const typename Kernel::Params& params) {
  launch<Kernel>(tiles(grid, frames, Kernel::Extent::kRows, band::kCols), Kernel::kSharedBytes, stream.handle, params);
}

template <class Half>
void band_forward(const ForwardCall& call) {
  const int pairs = call.grid.frames - 1;
  const ForwardParams p = forward_params(call);
  if (takes_low_tiles(call.grid, pairs, call.stream))
    launch_tiles<BandForward<Half, 4>>(call.grid, pairs, call.stream, p);
  else if (takes_high_tiles<Half>(call.grid, pairs, call.stream))
    launch_tiles<BandForward<Half, 16>>(call.grid, pairs, call.stream, p);
  else
    launch_tiles<BandForward<Half, 8>>(call.grid, pairs, call.stream, p);
}

template <class T>
void any_forward(const ForwardCall& call) {
  ForwardParams p = forward_params(call);
  const int64_t tokens = int64_t(call.grid.batch) * call.grid.frames * call.grid.rows * call.grid.cols;
  for (int m = p.cached ? p.count - 1 : 0; m < p.count && p.cosine; ++m) {
    const bool student = m == p.count - 1;
    void* norms = student ? call.norms : static_cast<T*>(call.workspace) + m * tokens;
    reciprocal_norms(call.grid, p.sources[m].tensor, norms, sizeof(T) == sizeof(double), call.stream);
    p.sources[m].norms = norms;
  }
  using Kernel = AnyForward<T>;
  launch<Kernel>(tiles(call.grid, call.grid.frames - 1, AnyTile<T>::kRows, AnyTile<T>::kCols),
                 Kernel::shared_bytes(call.window), call.stream.handle, p);
}

BackwardParams backward_params(const BackwardCall& call) {
  const auto direction = [](const LogitGradientCall& g) -> LogitGradient {
    return {g.g, g.type};
  };
  return {call.grid,
          call.window,
          call.features,
          call.norms,
          direction(call.forward),
          direction(call.backward),
          call.scales,
          call.skip_zeros ? call.scales : nullptr,
          call.scale,
          call.factor,
          call.gradient};
}

template <class Half>
void band_backward(const BackwardCall& call) {
  const int frames = call.grid.frames;
  return takes_low_tiles(call.grid, frames, call.stream)
             ? launch_tiles<BandBackward<Half, 4>>(call.grid, frames, call.stream, backward_params(call))
             : launch_tiles<BandBackward<Half, 8>>(call.grid, frames, call.stream, backward_params(call));
}

template <class T>
void any_backward(const BackwardCall& call) {
  using Kernel = AnyBackward<T>;
  launch<Kernel>(tiles(call.grid, call.grid.frames, AnyTile<T>::kRows, AnyTile<T>::kCols),
                 Kernel::shared_bytes(call.window), call.stream.handle, backward_params(call));
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
  if (call.window == band::kWindow && counts_in_pieces(call.features, call.grid) &&
      suits_band(call.forward.g, call.forward.type) && suits_band(call.backward.g, call.backward.type))
    return call.features.dtype == DType::bfloat16 ? band_backward<BFloat16>(call) : band_backward<Float16>(call);
  return call.features.dtype == DType::float64 ? any_backward<double>(call) : any_backward<float>(call);
}

}  // namespace cuda
}  // namespace lgf
