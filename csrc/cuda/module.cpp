// lgf_kernels._cuda: the CUDA kernels as plain functions of addresses, sizes and strides.
//
// The module knows nothing of torch. Callers own every tensor, the workspace included, and vouch for its memory and its
// device; what can be checked from the numbers alone is checked here. Functions return when the work is on the stream.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <vector>

#include "../common/bindings.h"
#include "gram_flow/calls.h"
#include "token_relation/calls.h"

#ifndef LGF_MODULE
#define LGF_MODULE _cuda
#endif

namespace py = pybind11;

namespace {

using namespace lgf::bindings;
namespace cuda = lgf::cuda;
using GradientTuple = std::tuple<Address, std::string>;  // g, dtype

int narrow(const char* what, std::int64_t value) {
  if (value > std::numeric_limits<int>::max()) throw std::invalid_argument(std::string(what) + ": too large");
  return static_cast<int>(value);
}

cuda::Grid parse_tokens(const Shape& shape) {
  const auto [batch, frames, rows, cols] = shape;
  return {narrow("batch", batch), narrow("frames", frames), narrow("rows", rows), narrow("cols", cols)};
}

cuda::Grid parse_grid(const Shape& shape) {
  check_shape(shape);
  return parse_tokens(shape);
}

cuda::Tensor parse_tensor(const TensorTuple& tuple) {
  check_channels(tuple);
  const auto& [data, dtype, channels, strides] = tuple;
  const auto [b, t, y, x] = strides;
  return {reinterpret_cast<const void*>(data), parse_dtype(dtype), narrow("channels", channels), {b, t, y, x}};
}

void* parse_norms(std::optional<Address> norms, const std::string& similarity) {
  const bool cosine = parse_choice("similarity", similarity, "cosine", "dot");
  if (cosine && !norms) throw std::invalid_argument("norms: needed for similarity 'cosine'");
  return cosine ? pointer(norms) : nullptr;
}

void reciprocal_norms(const TensorTuple& features, const Shape& shape, Address norms, const std::string& dtype, int device,
                      Address stream) {
  cuda::reciprocal_norms(parse_tokens(shape), parse_tensor(features), pointer(norms),
                         parse_choice("dtype", dtype, "float64", "float32"), {device, stream});
}

void local_gram_flow(const TensorTuple& features, const Shape& shape, Address out, int window,
                     const std::string& similarity, bool backward, std::optional<Address> norms, int device,
                     Address stream) {
  check_window(window, cuda::kMaxWindow);
  cuda::ForwardCall call = {};
  call.grid = parse_grid(shape);
  call.window = window;
  call.backward = backward;
  call.student = parse_tensor(features);
  call.temperature = 1;
  call.norms = parse_norms(norms, similarity);
  call.logits = pointer(out);
  call.stream = {device, stream};
  cuda::forward(call);
}

void lgf_kl_forward(const TensorTuple& student, const std::vector<TensorTuple>& teachers,
                    const std::vector<double>& teacher_weights, const Shape& shape, Address kl,
                    std::optional<Address> g, int window, double temperature, const std::string& similarity,
                    const std::string& boundary, const std::string& divergence, bool backward, bool from_logits,
                    const std::string& g_dtype, std::optional<Address> norms, std::optional<Address> workspace,
                    int device, Address stream) {
  check_window(window, cuda::kMaxWindow);
  check_teachers(teachers, teacher_weights, temperature, window, from_logits);
  if (teachers.size() > cuda::kMaxTeachers)
    throw std::invalid_argument("teachers: the CUDA kernels take at most " + std::to_string(cuda::kMaxTeachers) +
                                ", got " + std::to_string(teachers.size()) +
                                "; fuse some of them as cached logits, or take backend='triton' or 'portable'");
  std::vector<cuda::Tensor> parsed;
  for (const TensorTuple& teacher : teachers) parsed.push_back(parse_tensor(teacher));
  cuda::ForwardCall call = {};
  call.grid = parse_grid(shape);
  call.window = window;
  call.backward = backward;
  call.student = parse_tensor(student);
  call.teachers = parsed.data();
  call.weights = teacher_weights.data();
  call.teacher_count = static_cast<int>(parsed.size());
  call.teachers_are_logits = from_logits;
  call.exclude_boundary = parse_choice("boundary", boundary, "exclude", "zero");
  call.squared_error = parse_choice("divergence", divergence, "l2", "kl");
  call.temperature = temperature;
  call.norms = parse_norms(norms, similarity);
  call.workspace = pointer(workspace);
  if (call.norms && !from_logits && !workspace) throw std::invalid_argument("workspace: needed for similarity 'cosine'");
  call.values = pointer(kl);
  call.gradient = pointer(g);
  call.gradient_type = parse_dtype(g_dtype);
  call.stream = {device, stream};
  cuda::forward(call);
}

void gram_backward(const TensorTuple& features, const Shape& shape, const std::optional<GradientTuple>& forward,
                   const std::optional<GradientTuple>& backward, Address grad, int window,
                   const std::string& similarity, std::optional<Address> scales, std::optional<Address> scale,
                   double factor, std::optional<Address> norms, int device, Address stream) {
  check_window(window, cuda::kMaxWindow);
  const auto parse = [](const std::optional<GradientTuple>& gradient) -> cuda::LogitGradientCall {
    if (!gradient) return {};
    const auto& [g, dtype] = *gradient;
    return {pointer(g), parse_dtype(dtype)};
  };
  cuda::backward({parse_grid(shape), window, parse_tensor(features), parse(forward), parse(backward),
                  parse_norms(norms, similarity), pointer(scales), pointer(scale), factor, pointer(grad),
                  {device, stream}});
}

using VideoTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, Address>;  // batch, frames, tokens of one, weight
using RowsTuple = std::tuple<int, int>;
using PartsTuple = std::tuple<Address, int, std::int64_t>;  // data, splits, stride from one to the next

cuda::Video parse_video(const VideoTuple& tuple) {
  const auto [batch, frames, tokens, weight] = tuple;
  if (batch < 1 || frames < 1 || tokens < 1)
    throw std::invalid_argument("video: expected (batch, frames, tokens of a frame, weight) with no empty dimension");
  return {narrow("batch", batch), narrow("frames", frames), narrow("tokens", tokens),
          narrow("tokens of a video", frames * tokens), pointer(weight)};
}

cuda::Rows parse_rows(const RowsTuple& tuple) {
  const auto [first, end] = tuple;
  if (first < 0 || end <= first) throw std::invalid_argument("rows: expected (first, end) with 0 <= first < end");
  return {first, end};
}

// (tokens of a tile, type of the coefficients, blocks of `relation_products` side by side, channels of each)
std::tuple<int, std::string, int, int> relation_cut(const TensorTuple& student, const TensorTuple& teacher, int device) {
  const cuda::Cut cut = cuda::relation_cut(parse_tensor(student), parse_tensor(teacher), device);
  return {cut.tile, dtype_name(cut.coefficient_type), cut.side_by_side, cut.channels};
}

void relation_distances(const TensorTuple& student, const TensorTuple& teacher, const VideoTuple& video,
                        const std::tuple<Address, Address, Address>& norms, const RowsTuple& rows, Address sums,
                        std::int64_t sums_stride, std::optional<Address> coefficients,
                        const std::string& coefficient_dtype, double margin, double scale, int device, Address stream) {
  const auto [of_student, of_teacher, of_coefficients] = norms;
  cuda::relation_distances({parse_video(video), parse_tensor(student), parse_tensor(teacher), pointer(of_student),
                            pointer(of_teacher), pointer(of_coefficients), margin, scale, parse_rows(rows),
                            pointer(sums), sums_stride, pointer(coefficients), parse_dtype(coefficient_dtype),
                            {device, stream}});
}

void relation_products(const TensorTuple& factors, const VideoTuple& video, Address coefficients,
                       const std::string& coefficient_dtype, const RowsTuple& rows, const PartsTuple& parts, int device,
                       Address stream) {
  const auto [data, splits, stride] = parts;
  cuda::relation_products({parse_video(video), parse_tensor(factors), pointer(coefficients),
                           parse_dtype(coefficient_dtype), parse_rows(rows), pointer(data), splits, stride,
                           {device, stream}});
}

void relation_project(const TensorTuple& student, const VideoTuple& video, Address norms,
                      std::optional<Address> row_scale, const PartsTuple& parts, Address gradient, int device,
                      Address stream) {
  const auto [data, splits, stride] = parts;
  const cuda::Video parsed = parse_video(video);
  cuda::relation_project({{parsed.batch, 1, 1, parsed.tokens}, parse_tensor(student), pointer(norms),
                          pointer(row_scale), pointer(data), splits, stride, pointer(gradient), {device, stream}});
}

py::dict build_info() {
  py::dict info;
  info["version"] = LGF_BUILD_VERSION;
  info["compiler"] = LGF_BUILD_COMPILER;
  info["flags"] = LGF_BUILD_FLAGS;
  info["architectures"] = LGF_BUILD_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(LGF_MODULE, m) {
  m.doc() =
      "CUDA kernels of lgf_kernels. A tensor is (address, dtype, channels, (stride_b, stride_t, stride_h, stride_w)),\n"
      "its last dimension contiguous; shape is (batch, frames, rows, cols). Outputs are contiguous and allocated by\n"
      "the caller, in the accumulate type: float64 for float64 features (student), else float32. `norms` are reciprocal\n"
      "norms (B, T, H, W) in that type, needed for similarity 'cosine'. Gradients by the logits are (B, T-1, H, W, K, K+1),\n"
      "the last number of each row undefined.";
  using namespace py::literals;

  m.def("reciprocal_norms", &reciprocal_norms, "features"_a, "shape"_a, "norms"_a, py::kw_only(), "dtype"_a,
        "device"_a, "stream"_a, "1 / max(||f||, 1e-6) into `norms`, which are float32 or float64.");

  m.def("local_gram_flow", &local_gram_flow, "features"_a, "shape"_a, "out"_a, py::kw_only(), "window"_a,
        "similarity"_a, "backward"_a, "norms"_a, "device"_a, "stream"_a,
        "Logits (B, T-1, H, W, K*K) into `out`, 0 outside the frame, and the norms of the features into `norms`.");
  m.def("lgf_kl_forward", &lgf_kl_forward, "student"_a, "teachers"_a, "teacher_weights"_a, "shape"_a, "kl"_a, "g"_a,
        py::kw_only(), "window"_a, "temperature"_a, "similarity"_a, "boundary"_a, "divergence"_a, "backward"_a,
        "from_logits"_a, "g_dtype"_a, "norms"_a, "workspace"_a, "device"_a, "stream"_a,
        "Divergence per token (B, T-1, H, W) into `kl`; its gradient with respect to the student's logits into `g`, of\n"
        "type `g_dtype`, unless None; the student's norms into `norms`. With from_logits the teachers are cached logits of\n"
        "K*K channels; otherwise `workspace` has room for the norms of each.");
  m.def("gram_backward", &gram_backward, "features"_a, "shape"_a, "forward"_a, "backward"_a, "grad"_a, py::kw_only(),
        "window"_a, "similarity"_a, "scales"_a, "scale"_a, "factor"_a, "norms"_a, "device"_a, "stream"_a,
        "Gradient of factor * scale * sum scales * g * logits into `grad` (B, T, H, W, C, the features' dtype), every\n"
        "element written once. `forward` and `backward` are (g, dtype of g) for the logits of that direction, or None;\n"
        "`scales` (B, T-1, H, W) and `scale`, one number, are 1 if None.");
  // Token relations (token_relation/calls.h): features are (B, 1, 1, n, C), a video (batch, frames, tokens of a frame, address of the
  // symmetric weights of pairs of frames), parts (address, splits, stride); lgf_kernels/token_relation/cuda.py calls.
  m.def("relation_cut", &relation_cut, "student"_a, "teacher"_a, "device"_a,
        "How a call is cut: tokens of a tile, type of the coefficients, blocks side by side, channels of a block.");
  m.def("relation_distances", &relation_distances, "student"_a, "teacher"_a, "video"_a, "norms"_a, "rows"_a, "sums"_a,
        "sums_stride"_a, "coefficients"_a, py::kw_only(), "coefficient_dtype"_a, "margin"_a, "scale"_a, "device"_a,
        "stream"_a, "The sum of every pair of tiles, and unless None their blocks of coefficients.");
  m.def("relation_products", &relation_products, "factors"_a, "video"_a, "coefficients"_a, py::kw_only(),
        "coefficient_dtype"_a, "rows"_a, "parts"_a, "device"_a, "stream"_a,
        "Coefficients times factors into the parts, or added to them unless the rows begin with the first.");
  m.def("relation_project", &relation_project, "student"_a, "video"_a, "norms"_a, "row_scale"_a, "parts"_a,
        "gradient"_a, py::kw_only(), "device"_a, "stream"_a,
        "The sum of the parts, less what lies along the student, into `gradient` (B, n, C).");
  m.def("build_info", &build_info, "How the module was built.");
}
