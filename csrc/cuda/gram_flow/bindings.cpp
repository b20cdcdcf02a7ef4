// Python functions of the CUDA kernels of Local Gram Flow.
#include "../../common/gram_flow.h"

#include <pybind11/stl.h>

#include "../common/bindings.h"
#include "calls.h"

namespace py = pybind11;

namespace {

using namespace lgf::bindings;
namespace cuda = lgf::cuda;
using GradientTuple = std::tuple<Address, std::string>;  // g, dtype

cuda::Grid parse_grid(const Shape& shape) {
  check_shape(shape);
  return parse_tokens(shape);
}

void* parse_norms(std::optional<Address> norms, const std::string& similarity) {
  const bool cosine = parse_choice("similarity", similarity, "cosine", "dot");
  if (cosine && !norms) throw std::invalid_argument("norms: needed for similarity 'cosine'");
  return cosine ? pointer(norms) : nullptr;
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
                    std::optional<Address> token_weight, const std::string& g_dtype, std::optional<Address> norms,
                    std::optional<Address> workspace, int device, Address stream) {
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
  call.token_weight = pointer(token_weight);
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
                   const std::string& similarity, std::optional<Address> scales, bool skip_zeros,
                   std::optional<Address> scale, double factor, std::optional<Address> norms, int device,
                   Address stream) {
  check_window(window, cuda::kMaxWindow);
  if (skip_zeros && !scales) throw std::invalid_argument("scales: needed with skip_zeros");
  const auto parse = [](const std::optional<GradientTuple>& gradient) -> cuda::LogitGradientCall {
    if (!gradient) return {};
    const auto& [g, dtype] = *gradient;
    return {pointer(g), parse_dtype(dtype)};
  };
  cuda::backward({parse_grid(shape), window, parse_tensor(features), parse(forward), parse(backward),
                  parse_norms(norms, similarity), pointer(scales), skip_zeros, pointer(scale), factor, pointer(grad),
                  {device, stream}});
}

const Family family([](py::module_& m) {
  using namespace py::literals;

  m.def("local_gram_flow", &local_gram_flow, "features"_a, "shape"_a, "out"_a, py::kw_only(), "window"_a,
        "similarity"_a, "backward"_a, "norms"_a, "device"_a, "stream"_a,
        "Logits (B, T-1, H, W, K*K) into `out`, 0 outside the frame, and the norms of the features into `norms`.");
  m.def("lgf_kl_forward", &lgf_kl_forward, "student"_a, "teachers"_a, "teacher_weights"_a, "shape"_a, "kl"_a, "g"_a,
        py::kw_only(), "window"_a, "temperature"_a, "similarity"_a, "boundary"_a, "divergence"_a, "backward"_a,
        "from_logits"_a, "token_weight"_a, "g_dtype"_a, "norms"_a, "workspace"_a, "device"_a, "stream"_a,
        "Divergence per token (B, T-1, H, W) into `kl`; its gradient with respect to the student's logits into `g`, of\n"
        "type `g_dtype`, unless None; the student's norms into `norms`. With from_logits the teachers are cached logits of\n"
        "K*K channels; otherwise `workspace` has room for the norms of each. Tiles without any `token_weight` (B, T-1, H, W),\n"
        "unless None, are zeros in `kl` and `g`, even where the features are NaN.");
  m.def("gram_backward", &gram_backward, "features"_a, "shape"_a, "forward"_a, "backward"_a, "grad"_a, py::kw_only(),
        "window"_a, "similarity"_a, "scales"_a, "skip_zeros"_a, "scale"_a, "factor"_a, "norms"_a, "device"_a, "stream"_a,
        "Gradient of factor * scale * sum scales * g * logits into `grad` (B, T, H, W, C, the features' dtype), every\n"
        "element written once. `forward` and `backward` are (g, dtype of g) for the logits of that direction, or None;\n"
        "`scales` (B, T-1, H, W) and `scale`, one number, are 1 if None. With skip_zeros tokens of scale 0 give nothing, in whole\n"
        "tiles even where their g or the features are NaN.");
});

}  // namespace
