// Entry points of namespace LGF_ISA, compiled once per instruction set.
#include "backward.h"
#include "forward.h"

namespace lgf {
namespace LGF_ISA {

namespace {

bool in_double(const Tensor& f) { return f.dtype == DType::float64; }

void local_gram_flow_any(const GramFlowCall& call) {
  in_double(call.features) ? local_gram_flow<double>(call) : local_gram_flow<float>(call);
}

void lgf_kl_forward_any(const LgfKlCall& call) {
  in_double(call.student) ? lgf_kl_forward<double>(call) : lgf_kl_forward<float>(call);
}

void gram_backward_any(const GramBackwardCall& call) {
  in_double(call.features) ? gram_backward<double>(call) : gram_backward<float>(call);
}

}  // namespace

extern const GramFlowKernels gram_flow_kernels;  // const objects are local to their file unless declared extern
const GramFlowKernels gram_flow_kernels = {local_gram_flow_any, lgf_kl_forward_any, gram_backward_any};

}  // namespace LGF_ISA
}  // namespace lgf
