// Python functions of the CUDA kernels of token relations.
//
// Features are (B, 1, 1, n, C), a video (batch, frames, tokens of a frame, address of the symmetric weights of pairs of
// frames), parts (address, splits, stride); lgf_kernels/token_relation/cuda.py calls.
#include <pybind11/stl.h>

#include "../common/bindings.h"
#include "calls.h"

namespace py = pybind11;

namespace {

using namespace lgf::bindings;
namespace cuda = lgf::cuda;
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
                        const std::string& coefficient_dtype, double margin, bool squared,
                        const std::tuple<double, double>& floors, double scale, int device, Address stream) {
  const auto [student_floor, teacher_floor] = floors;
  const auto [of_student, of_teacher, of_coefficients] = norms;
  cuda::relation_distances({parse_video(video), parse_tensor(student), parse_tensor(teacher), pointer(of_student),
                            pointer(of_teacher), pointer(of_coefficients), margin, scale, squared, student_floor, teacher_floor,
                            parse_rows(rows),
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

void relation_project(const TensorTuple& student, const VideoTuple& video, std::optional<Address> norms,
                      std::optional<Address> row_scale, const PartsTuple& parts, Address gradient, int device,
                      Address stream) {
  const auto [data, splits, stride] = parts;
  const cuda::Video parsed = parse_video(video);
  cuda::relation_project({{parsed.batch, 1, 1, parsed.tokens}, parse_tensor(student), pointer(norms),
                          pointer(row_scale), pointer(data), splits, stride, pointer(gradient), {device, stream}});
}

const Family family([](py::module_& m) {
  using namespace py::literals;

  m.def("relation_cut", &relation_cut, "student"_a, "teacher"_a, "device"_a,
        "How a call is cut: tokens of a tile, type of the coefficients, blocks side by side, channels of a block.");
  m.def("relation_distances", &relation_distances, "student"_a, "teacher"_a, "video"_a, "norms"_a, "rows"_a, "sums"_a,
        "sums_stride"_a, "coefficients"_a, py::kw_only(), "coefficient_dtype"_a, "margin"_a, "squared"_a,
        "floors"_a, "scale"_a, "device"_a, "stream"_a, "The sum of every pair of tiles, and unless None their blocks of coefficients.");
  m.def("relation_products", &relation_products, "factors"_a, "video"_a, "coefficients"_a, py::kw_only(),
        "coefficient_dtype"_a, "rows"_a, "parts"_a, "device"_a, "stream"_a,
        "Coefficients times factors into the parts, or added to them unless the rows begin with the first.");
  m.def("relation_project", &relation_project, "student"_a, "video"_a, "norms"_a, "row_scale"_a, "parts"_a,
        "gradient"_a, py::kw_only(), "device"_a, "stream"_a,
        "The sum of the parts, less what lies along the student, into `gradient` (B, n, C).");
});

}  // namespace
