// Entry points of namespace LGF_ISA, compiled once per instruction set.
#include "forward.h"

namespace lgf {
namespace LGF_ISA {

namespace {

void forward_any(const PatchForwardCall& call) {
  call.student.dtype == DType::float64 ? patch_forward<double>(call) : patch_forward<float>(call);
}

void backward_any(const PatchBackwardCall& call) {
  call.dtype == DType::float64 ? patch_backward<double>(call) : patch_backward<float>(call);
}

}  // namespace

extern const PatchKernels patch_kernels;  // const objects are local to their file unless declared extern
const PatchKernels patch_kernels = {forward_any, backward_any};

}  // namespace LGF_ISA
}  // namespace lgf
