// Python functions of the CPU kernels of patch cosine.
#include <pybind11/stl.h>

#include "../common/bindings.h"
#include "calls.h"

namespace py = pybind11;

namespace lgf {

#define LGF_DECLARE(isa) namespace isa { extern const PatchKernels patch_kernels; }
LGF_EACH_ISA(LGF_DECLARE)

namespace {

using namespace bindings;

// The kernels of the instruction set in use.
const PatchKernels& kernels() {
#define LGF_TABLE(isa) &isa::patch_kernels,
  static const PatchKernels* const tables[] = {LGF_EACH_ISA(LGF_TABLE)};
  return *tables[selected_isa()];
}

void forward(const TensorTuple& student, const std::vector<TensorTuple>& teachers, const std::vector<double>& shares,
             const Shape& shape, std::int64_t teacher_frames, std::optional<Address> weights, Address distance,
             Address reciprocal, std::optional<Address> gradient, int num_threads) {
  const Grid grid = parse_grid(shape);
  if (teachers.size() != shares.size()) throw std::invalid_argument("shares: expected one for each teacher");
  if (teacher_frames < 1 || (!weights && teacher_frames != grid.frames))
    throw std::invalid_argument("teacher_frames: expected at least 1, and without weights the student's frames");
  std::vector<PatchTeacher> parsed;
  std::int64_t channels = 0;
  for (std::size_t m = 0; m < teachers.size(); ++m) {
    parsed.push_back({parse_tensor(teachers[m]), shares[m]});
    channels += parsed[m].features.channels;
  }
  const PatchForwardCall call{grid,
                              parse_tensor(student),
                              parsed.data(),
                              static_cast<std::int64_t>(parsed.size()),
                              teacher_frames,
                              pointer(weights),
                              pointer(distance),
                              pointer(reciprocal),
                              pointer(gradient),
                              num_threads};
  if (channels != call.student.channels)
    throw std::invalid_argument("channels: expected the student's to be those of all teachers together");
  const py::gil_scoped_release unlocked;
  kernels().forward(call);
}

void backward(Address gradient, const std::string& dtype, std::int64_t tokens, std::int64_t channels, Address scale,
              Address out, int num_threads) {
  if (tokens < 1 || channels < 1) throw std::invalid_argument("tokens, channels: expected at least 1");
  const PatchBackwardCall call{parse_dtype(dtype), tokens, channels, pointer(gradient), pointer(scale), pointer(out),
                               num_threads};
  const py::gil_scoped_release unlocked;
  kernels().backward(call);
}

const Family family([](py::module_& m) {
  using namespace py::literals;

  m.def("patch_cosine", &forward, "student"_a, "teachers"_a, "shares"_a, "shape"_a, "teacher_frames"_a, "weights"_a,
        "distance"_a, "reciprocal"_a, "gradient"_a, py::kw_only(), "num_threads"_a,
        "Of each token of the student (B, F, H, W, C) 1 - <h / s, T>, 1 / s and, unless None, the gradient G, (B, F, H, W, C)\n"
        "in the student's type. T is made of teachers (B, K, H, W, C_m) by `weights` (F, K), or None: each frame its own.");
  m.def("patch_cosine_backward", &backward, "gradient"_a, "dtype"_a, "tokens"_a, "channels"_a, "scale"_a, "out"_a,
        py::kw_only(), "num_threads"_a, "scale * gradient of contiguous tokens, in the type of the gradient.");
});

}  // namespace
}  // namespace lgf
