// lgf_kernels._cpu: the CPU kernels as plain functions of addresses, sizes and strides.
//
// The module knows nothing of torch. Callers own every tensor and vouch for its memory; what can be
// checked from the numbers alone is checked here. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/bindings.h"
#include "gram_flow/calls.h"

namespace py = pybind11;

namespace {

using namespace lgf::bindings;
using GradientTuple = std::tuple<Address, std::optional<Address>>;  // g, scale

lgf::Grid parse_grid(const Shape& shape) {
  check_shape(shape);
  const auto [batch, frames, rows, cols] = shape;
  return {batch, frames, rows, cols};
}

lgf::Window parse_window(int size, const std::string& similarity, bool backward) {
  check_window(size, lgf::kMaxWindow);
  return {size, parse_choice("similarity", similarity, "cosine", "dot"), backward};
}

lgf::Tensor parse_tensor(const TensorTuple& tuple) {
  check_channels(tuple);
  const auto& [data, dtype, channels, strides] = tuple;
  const auto [b, t, y, x] = strides;
  return {reinterpret_cast<const void*>(data), parse_dtype(dtype), channels, {b, t, y, x}};
}

void local_gram_flow(const TensorTuple& features, const Shape& shape, Address out, int window,
                     const std::string& similarity, bool backward, int num_threads) {
  const lgf::GramFlowCall call{parse_grid(shape), parse_window(window, similarity, backward), parse_tensor(features),
                               pointer(out), num_threads};
  const py::gil_scoped_release unlocked;
  lgf::selected_kernels().local_gram_flow(call);
}

void lgf_kl_forward(const TensorTuple& student, const std::vector<TensorTuple>& teachers,
                    const std::vector<double>& teacher_weights, const Shape& shape, Address kl,
                    std::optional<Address> g, int window, double temperature, const std::string& similarity,
                    const std::string& boundary, const std::string& divergence, bool backward, bool from_logits,
                    int num_threads) {
  check_teachers(teachers, teacher_weights, temperature, window, from_logits);
  std::vector<lgf::Teacher> parsed;
  for (std::size_t m = 0; m < teachers.size(); ++m)
    parsed.push_back({parse_tensor(teachers[m]), teacher_weights[m]});
  const lgf::LgfKlCall call{parse_grid(shape),
                            parse_window(window, similarity, backward),
                            parse_tensor(student),
                            parsed.data(),
                            static_cast<std::int64_t>(parsed.size()),
                            from_logits,
                            temperature,
                            parse_choice("boundary", boundary, "exclude", "zero"),
                            parse_choice("divergence", divergence, "l2", "kl"),
                            pointer(kl),
                            pointer(g),
                            num_threads};
  const py::gil_scoped_release unlocked;
  lgf::selected_kernels().lgf_kl_forward(call);
}

void gram_backward(const TensorTuple& features, const Shape& shape, const std::optional<GradientTuple>& forward,
                   const std::optional<GradientTuple>& backward, Address grad, int window,
                   const std::string& similarity, int num_threads) {
  const auto parse = [](const std::optional<GradientTuple>& gradient) -> lgf::LogitGradient {
    if (!gradient) return {nullptr, nullptr};
    return {pointer(std::get<0>(*gradient)), pointer(std::get<1>(*gradient))};
  };
  const lgf::GramBackwardCall call{parse_grid(shape), parse_window(window, similarity, false),
                                   parse_tensor(features), parse(forward),
                                   parse(backward),  pointer(grad),
                                   num_threads};
  const py::gil_scoped_release unlocked;
  lgf::selected_kernels().gram_backward(call);
}

std::vector<std::string> isas() {
  const lgf::Kernels* const* list;
  const int count = lgf::available_kernels(&list);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.push_back(list[i]->isa);
  return names;
}

void set_isa(const std::string& isa) {
  if (lgf::select_kernels(isa.c_str())) return;
  std::string message = "isa: '" + isa + "' is not available here; choose from";
  for (const std::string& name : isas()) message += " " + name;
  throw std::invalid_argument(message);
}

py::dict build_info() {
  py::dict info;
  info["version"] = LGF_BUILD_VERSION;
  info["compiler"] = LGF_BUILD_COMPILER;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["flags"] = LGF_BUILD_FLAGS;
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  std::vector<std::string> compiled;
#ifdef LGF_HAVE_AVX512
  compiled.push_back("avx512");
#endif
#ifdef LGF_HAVE_AVX2
  compiled.push_back("avx2");
#endif
  compiled.push_back("baseline");
  info["isas_compiled"] = compiled;
  info["isas_available"] = isas();
  info["isa"] = lgf::selected_kernels().isa;
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() =
      "CPU kernels of lgf_kernels. A tensor is (address, dtype, channels, (stride_b, stride_t, stride_h, stride_w)),\n"
      "its last dimension contiguous; shape is (batch, frames, rows, cols). Outputs are contiguous and allocated by\n"
      "the caller, in the accumulate type: float64 for float64 features (student), else float32.";
  using namespace py::literals;

  m.def("local_gram_flow", &local_gram_flow, "features"_a, "shape"_a, "out"_a, py::kw_only(), "window"_a,
        "similarity"_a, "backward"_a, "num_threads"_a,
        "Logits (B, T-1, H, W, K*K) into `out`; 0 outside the frame.");
  m.def("lgf_kl_forward", &lgf_kl_forward, "student"_a, "teachers"_a, "teacher_weights"_a, "shape"_a, "kl"_a, "g"_a,
        py::kw_only(), "window"_a, "temperature"_a, "similarity"_a, "boundary"_a, "divergence"_a, "backward"_a,
        "from_logits"_a, "num_threads"_a,
        "Divergence per token (B, T-1, H, W) into `kl`; its gradient with respect to the student's logits into `g`\n"
        "(B, T-1, H, W, K*K) unless None. With from_logits the teachers are cached logits of K*K channels.");
  m.def("gram_backward", &gram_backward, "features"_a, "shape"_a, "forward"_a, "backward"_a, "grad"_a, py::kw_only(),
        "window"_a, "similarity"_a, "num_threads"_a,
        "Gradient of sum scale * g * logits into `grad` (B, T, H, W, C, the features' dtype), every element written\n"
        "once. `forward` and `backward` are (g, scale or None) for the logits of that direction, or None.");
  m.def("isas", &isas, "Instruction sets this module holds kernels for and this CPU runs, best first.");
  m.def("set_isa", &set_isa, "isa"_a, "Use the kernels of this instruction set from now on (process-wide).");
  // A wrong name fails the import, with the reason: silently running other kernels would mislead.
  if (const char* isa = std::getenv("LGF_CPU_ISA")) set_isa(isa);

  m.def("build_info", &build_info, "How the module was built and what it chose to run.");
}
