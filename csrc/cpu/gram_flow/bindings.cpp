// Python functions of the CPU kernels of Local Gram Flow.
#include "../../common/gram_flow.h"
#include "../common/bindings.h"

#include <pybind11/stl.h>

#include "calls.h"

namespace py = pybind11;

namespace lgf {

#define LGF_DECLARE(isa) namespace isa { extern const GramFlowKernels gram_flow_kernels; }
LGF_EACH_ISA(LGF_DECLARE)

namespace {

using namespace bindings;
using GradientTuple = std::tuple<Address, std::optional<Address>>;  // g, scale

// The kernels of the instruction set in use.
const GramFlowKernels& kernels() {
#define LGF_TABLE(isa) &isa::gram_flow_kernels,
  static const GramFlowKernels* const tables[] = {LGF_EACH_ISA(LGF_TABLE)};
  return *tables[selected_isa()];
}

Grid parse_grid(const Shape& shape) {
  check_shape(shape);
  return bindings::parse_grid(shape);
}

Window parse_window(int size, const std::string& similarity, bool backward) {
  check_window(size, kMaxWindow);
  return {size, parse_choice("similarity", similarity, "cosine", "dot"), backward};
}

void local_gram_flow(const TensorTuple& features, const Shape& shape, Address out, int window,
                     const std::string& similarity, bool backward, int num_threads) {
  const GramFlowCall call{parse_grid(shape), parse_window(window, similarity, backward), parse_tensor(features),
                          pointer(out), num_threads};
  const py::gil_scoped_release unlocked;
  kernels().local_gram_flow(call);
}

void lgf_kl_forward(const TensorTuple& student, const std::vector<TensorTuple>& teachers,
                    const std::vector<double>& teacher_weights, const Shape& shape, Address kl,
                    std::optional<Address> g, int window, double temperature, const std::string& similarity,
                    const std::string& boundary, const std::string& divergence, bool backward, bool from_logits,
                    std::optional<Address> token_weight, int num_threads) {
  check_teachers(teachers, teacher_weights, temperature, window, from_logits);
  std::vector<Teacher> parsed;
  for (std::size_t m = 0; m < teachers.size(); ++m)
    parsed.push_back({parse_tensor(teachers[m]), teacher_weights[m]});
  const LgfKlCall call{parse_grid(shape),
                       parse_window(window, similarity, backward),
                       parse_tensor(student),
                       parsed.data(),
                       static_cast<std::int64_t>(parsed.size()),
                       from_logits,
                       temperature,
                       parse_choice("boundary", boundary, "exclude", "zero"),
                       parse_choice("divergence", divergence, "l2", "kl"),
                       pointer(token_weight),
                       pointer(kl),
                       pointer(g),
                       num_threads};
  const py::gil_scoped_release unlocked;
  kernels().lgf_kl_forward(call);
}

void gram_backward(const TensorTuple& features, const Shape& shape, const std::optional<GradientTuple>& forward,
                   const std::optional<GradientTuple>& backward, Address grad, int window,
                   const std::string& similarity, bool skip_zeros, int num_threads) {
  const auto parse = [](const std::optional<GradientTuple>& gradient) -> LogitGradient {
    if (!gradient) return {nullptr, nullptr};
    return {pointer(std::get<0>(*gradient)), pointer(std::get<1>(*gradient))};
  };
  const GramBackwardCall call{parse_grid(shape), parse_window(window, similarity, false), parse_tensor(features),
                              parse(forward), parse(backward), skip_zeros, pointer(grad), num_threads};
  const py::gil_scoped_release unlocked;
  kernels().gram_backward(call);
}

const Family family([](py::module_& m) {
  using namespace py::literals;

  m.def("local_gram_flow", &local_gram_flow, "features"_a, "shape"_a, "out"_a, py::kw_only(), "window"_a,
        "similarity"_a, "backward"_a, "num_threads"_a,
        "Logits (B, T-1, H, W, K*K) into `out`; 0 outside the frame.");
  m.def("lgf_kl_forward", &lgf_kl_forward, "student"_a, "teachers"_a, "teacher_weights"_a, "shape"_a, "kl"_a, "g"_a,
        py::kw_only(), "window"_a, "temperature"_a, "similarity"_a, "boundary"_a, "divergence"_a, "backward"_a,
        "from_logits"_a, "token_weight"_a, "num_threads"_a,
        "Divergence per token (B, T-1, H, W) into `kl`; its gradient with respect to the student's logits into `g`\n"
        "(B, T-1, H, W, K*K) unless None. With from_logits the teachers are cached logits of K*K channels. Neither output\n"
        "is weighted; both are 0 in image rows whose `token_weight` (B, T-1, H, W) is 0, which are not computed.");
  m.def("gram_backward", &gram_backward, "features"_a, "shape"_a, "forward"_a, "backward"_a, "grad"_a, py::kw_only(),
        "window"_a, "similarity"_a, "skip_zeros"_a, "num_threads"_a,
        "Gradient of sum scale * g * logits into `grad` (B, T, H, W, C, the features' dtype), every element written\n"
        "once. `forward` and `backward` are (g, scale or None) for the logits of that direction, or None. With skip_zeros\n"
        "nothing of image rows of scale 0 is read.");
});

}  // namespace
}  // namespace lgf
