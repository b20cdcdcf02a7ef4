// Entry points of namespace LGF_ISA, compiled once per instruction set.
#include "backward.h"

namespace lgf {
namespace LGF_ISA {

namespace {

void forward_any(const PointsForwardCall& call) {
  call.features.dtype == DType::float64 ? points_forward<double>(call) : points_forward<float>(call);
}

void backward_any(const PointsBackwardCall& call) {
  call.features.dtype == DType::float64 ? points_backward<double>(call) : points_backward<float>(call);
}

}  // namespace

extern const PointKernels point_kernels;  // const objects are local to their file unless declared extern
const PointKernels point_kernels = {forward_any, backward_any};

}  // namespace LGF_ISA
}  // namespace lgf
