// Python function of the CPU kernels of token relations.
#include <pybind11/stl.h>

#include "../common/bindings.h"
#include "calls.h"
#include "schedule.h"

namespace py = pybind11;

namespace lgf {

#define LGF_DECLARE(isa) namespace isa { extern const RelationKernels relation_kernels; }
LGF_EACH_ISA(LGF_DECLARE)

namespace {

using namespace bindings;

// The kernels of the instruction set in use.
const RelationKernels& kernels() {
#define LGF_TABLE(isa) &isa::relation_kernels,
  static const RelationKernels* const tables[] = {LGF_EACH_ISA(LGF_TABLE)};
  return *tables[selected_isa()];
}

// The blocks of a video, by their first tokens and the end, and its rounds of tiles.
py::tuple rounds_of(Address weights, std::int64_t frames, std::int64_t frame_tokens) {
  if (frames < 1 || frame_tokens < 1) throw std::invalid_argument("frames, frame_tokens: expected at least 1");
  const RelationSchedule<float> schedule(static_cast<const float*>(pointer(weights)), frames, frame_tokens,
                                         kernels().block(DType::float32));
  const RelationRounds all = schedule.rounds();
  py::list starts, rounds;
  do starts.append(all.starts[starts.size()]);
  while (py::cast<std::int64_t>(starts[starts.size() - 1]) < frames * frame_tokens);
  for (std::int64_t r = 0, tile = 0; r < all.count; ++r) {
    py::list round;
    for (; tile < all.ends[r]; ++tile) round.append(py::make_tuple(all.tiles[tile].row, all.tiles[tile].column));
    rounds.append(round);
  }
  return py::make_tuple(starts, rounds);
}

template <class T>
void run(RelationCall& call) {
  const RelationSchedule<T> schedule(static_cast<const T*>(call.weights), call.grid.frames, call.grid.cols,
                                     kernels().block(call.student.dtype));
  call.rounds = schedule.rounds();
  kernels().forward(call);
}

void forward(const TensorTuple& student, const TensorTuple& teacher, const Shape& shape, Address weights, Address losses,
             std::optional<Address> gradient, double margin, bool squared, bool cosine, bool clamps_student,
             bool clamps_teacher, int num_threads) {
  if (!(margin >= 0)) throw std::invalid_argument("margin: expected at least 0");
  if (squared && margin > 0) throw std::invalid_argument("margin: expected 0 with squared");
  if (clamps_student && !clamps_teacher) throw std::invalid_argument("clamps_teacher: expected true with clamps_student");
  RelationCall call{parse_grid(shape), parse_tensor(student), parse_tensor(teacher), pointer(weights), pointer(losses),
                    pointer(gradient), margin, squared, cosine, clamps_student, clamps_teacher, {}, num_threads};
  if (call.grid.rows != 1) throw std::invalid_argument("shape: expected (videos, frames, 1, tokens of a frame)");
  const py::gil_scoped_release unlocked;
  call.student.dtype == DType::float64 ? run<double>(call) : run<float>(call);
}

const Family family([](py::module_& m) {
  using namespace py::literals;

  m.def("token_relation", &forward, "student"_a, "teacher"_a, "shape"_a, "weights"_a, "losses"_a, "gradient"_a,
        py::kw_only(), "margin"_a, "squared"_a, "cosine"_a, "clamps_student"_a, "clamps_teacher"_a, "num_threads"_a,
        "Losses (B) of a student (B, F, 1, N, C) against a teacher (B, F, 1, N, C') and, unless None, the gradient of\n"
        "each video's own loss, (B, F, N, C). `weights` (F, F) are symmetric: twice the pair weights over N * N.");
  m.def("token_relation_rounds", &rounds_of, "weights"_a, "frames"_a, "frame_tokens"_a,
        "How float32 features of a video with weights (F, F) are computed: the first tokens of its blocks and their end,\n"
        "and in rounds the pairs of blocks (row, column >= row) that are computed at the same time.");
});

}  // namespace
}  // namespace lgf
