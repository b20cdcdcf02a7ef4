// Launches of the kernel that takes the norms of features.
#include "norms.h"

namespace lgf {
namespace cuda {
namespace {

template <class T>
void launch_norms(const Grid& grid, const Tensor& features, void* norms, const Stream& stream) {
  launch<Norms<T>>(Norms<T>::blocks(grid), 0, stream.handle,
                   {grid, features, in_pieces(features), static_cast<T*>(norms)});
}

}  // namespace

void probe(int device) { check_loads<Norms<float>>(device); }

void reciprocal_norms(const Grid& grid, const Tensor& features, void* norms, bool in_double, const Stream& stream) {
  use_device(stream.device);
  return in_double ? launch_norms<double>(grid, features, norms, stream) : launch_norms<float>(grid, features, norms, stream);
}

}  // namespace cuda
}  // namespace lgf
