// lgf_kernels._cpu: the CPU kernels as plain functions of addresses, sizes and strides. Every family adds its own.
//
// The module knows nothing of torch. Callers own every tensor and are responsible for its memory; what can be checked
// from the numbers alone is checked here. The GIL is released while a kernel runs.
#include <pybind11/stl.h>

#include <cstdlib>

#include "../common/bindings.h"
#include "common/dispatch.h"

namespace py = pybind11;

namespace {

std::vector<std::string> isas() {
  const char* const* names;
  const int count = lgf::available_isas(&names);
  return {names, names + count};
}

void set_isa(const std::string& isa) {
  if (lgf::select_isa(isa.c_str())) return;
  std::string message = "isa: '" + isa + "' is not available here; choose from";
  for (const std::string& name : isas()) message += " " + name;
  throw std::invalid_argument(message);
}

py::dict build_info() {
  py::dict info;
  info["version"] = LGF_BUILD_VERSION;
  info["interface"] = lgf::kInterface;
  info["compiler"] = LGF_BUILD_COMPILER;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["flags"] = LGF_BUILD_FLAGS;
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
#define LGF_NAME(isa) #isa,
  info["isas_compiled"] = std::vector<std::string>{LGF_EACH_ISA(LGF_NAME)};
  info["isas_available"] = isas();
  info["isa"] = lgf::selected_isa_name();
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() =
      "CPU kernels of lgf_kernels. A tensor is (address, dtype, channels, (stride_b, stride_t, stride_h, stride_w)),\n"
      "its last dimension contiguous; shape is (batch, frames, rows, cols). Outputs are contiguous and allocated by\n"
      "the caller, in the accumulate type: float64 for float64 features (student), else float32.";
  using namespace py::literals;

  for (const auto define : lgf::bindings::Family::all()) define(m);
  m.def("isas", &isas, "Instruction sets this module holds kernels for and this CPU runs, best first.");
  m.def("set_isa", &set_isa, "isa"_a, "Use the kernels of this instruction set from now on (process-wide).");
  // A wrong name fails the import, with the reason: silently running other kernels would mislead.
  if (const char* isa = std::getenv("LGF_CPU_ISA")) set_isa(isa);

  m.def("build_info", &build_info, "How the module was built and what it chose to run.");
}
