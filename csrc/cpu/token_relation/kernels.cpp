// Entry points of namespace LGF_ISA, compiled once per instruction set.
#include "forward.h"

namespace lgf {
namespace LGF_ISA {

namespace {

int64_t block_of(DType student) {
  return student == DType::float64 ? kBlock<double> : kBlock<float>;
}

void forward_any(const RelationCall& call) {
  call.student.dtype == DType::float64 ? relation_forward<double>(call) : relation_forward<float>(call);
}

}  // namespace

extern const RelationKernels relation_kernels;  // const objects are local to their file unless declared extern
const RelationKernels relation_kernels = {block_of, forward_any};

}  // namespace LGF_ISA
}  // namespace lgf
