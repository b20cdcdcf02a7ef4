// lgf_kernels._cuda: the CUDA kernels as plain functions of addresses, sizes and strides. Every family adds its own.
//
// The module knows nothing of torch. Callers own every tensor, the workspace included, and are responsible for its memory
// and its device; what can be checked from the numbers alone is checked here. Functions return when the work is on the
// stream.
#include <pybind11/stl.h>

#include "common/bindings.h"

#ifndef LGF_MODULE
#define LGF_MODULE _cuda
#endif

namespace py = pybind11;

namespace {

using namespace lgf::bindings;
namespace cuda = lgf::cuda;

void reciprocal_norms(const TensorTuple& features, const Shape& shape, Address norms, const std::string& dtype, int device,
                      Address stream) {
  cuda::reciprocal_norms(parse_tokens(shape), parse_tensor(features), pointer(norms),
                         parse_choice("dtype", dtype, "float64", "float32"), {device, stream});
}

py::dict build_info() {
  py::dict info;
  info["version"] = LGF_BUILD_VERSION;
  info["interface"] = lgf::kInterface;
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
  m.def("probe", &cuda::probe, "device"_a, "Raises, with a reason for people, unless the kernels can be loaded.");
  for (const auto define : Family::all()) define(m);
  m.def("build_info", &build_info, "How the module was built.");
}
