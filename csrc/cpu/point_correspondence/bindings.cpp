// Python functions of the CPU kernels of point correspondence.
#include <pybind11/stl.h>

#include "../common/bindings.h"
#include "calls.h"

namespace py = pybind11;

namespace lgf {

#define LGF_DECLARE(isa) namespace isa { extern const PointKernels point_kernels; }
LGF_EACH_ISA(LGF_DECLARE)

namespace {

using namespace bindings;

// The kernels of the instruction set in use.
const PointKernels& kernels() {
#define LGF_TABLE(isa) &isa::point_kernels,
  static const PointKernels* const tables[] = {LGF_EACH_ISA(LGF_TABLE)};
  return *tables[selected_isa()];
}

void check_points(std::int64_t count, std::int64_t window) {
  if (count < 0) throw std::invalid_argument("count: expected at least 0");
  if (window < 0) throw std::invalid_argument("window: expected at least 0");
}

void forward(const TensorTuple& features, const Shape& shape, Address queries, std::int64_t count, Address places,
             Address state, std::int64_t window, int num_threads) {
  check_points(count, window);
  const PointsForwardCall call{parse_grid(shape), parse_tensor(features), pointer(queries), count, window,
                               pointer(places),   pointer(state),         num_threads};
  const py::gil_scoped_release unlocked;
  kernels().forward(call);
}

void backward(const TensorTuple& features, const Shape& shape, Address queries, std::int64_t count, Address places,
              Address state, Address grad_places, Address grad_features, Address grad_queries, std::int64_t window,
              int num_threads) {
  check_points(count, window);
  const PointsBackwardCall call{parse_grid(shape),      parse_tensor(features), pointer(queries),
                                count,                  window,                 pointer(places),
                                pointer(state),         pointer(grad_places),   pointer(grad_features),
                                pointer(grad_queries), num_threads};
  const py::gil_scoped_release unlocked;
  kernels().backward(call);
}

const Family family([](py::module_& m) {
  using namespace py::literals;

  m.def("point_correspondence", &forward, "features"_a, "shape"_a, "queries"_a, "count"_a, "places"_a, "state"_a,
        py::kw_only(), "window"_a, "num_threads"_a,
        "Places (B, N, T, 2) of N queries, and what backward needs: lse (B, N, T, 1), with a window (not 0) and the token\n"
        "of the maximum (B, N, T, 2). `queries` are normalised features over the temperature, (B, N, C).");
  m.def("point_correspondence_backward", &backward, "features"_a, "shape"_a, "queries"_a, "count"_a, "places"_a,
        "state"_a, "grad_places"_a, "grad_features"_a, "grad_queries"_a, py::kw_only(), "window"_a, "num_threads"_a,
        "The gradient of the features as tokens that are searched, (B, T, H, W, C) in their type, and that of the\n"
        "normalised queries times the temperature, (B, N, C).");
});

}  // namespace
}  // namespace lgf
