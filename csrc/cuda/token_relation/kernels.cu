// Choice of the kernels of token relation distances: tensor cores for half precision, or plain ones.
#include "calls.h"

#include "distances.h"
#include "plain.h"
#include "products.h"
#include "project.h"
#include "warpgroups.h"
#include "warps.h"

namespace lgf {
namespace cuda {
namespace {

// Calls function(Products) with the class for coefficients of this type on this device.
template <class Function>
void with_products(DType coefficient_type, int device, Function&& function) {
  const bool warpgroups = has_warpgroups(device);
  switch (coefficient_type) {
    case DType::bfloat16: return warpgroups ? function(Warpgroups<BFloat16>()) : function(Warps<BFloat16>());
    case DType::float16: return warpgroups ? function(Warpgroups<Float16>()) : function(Warps<Float16>());
    case DType::float64: return function(Plain<double>());
    default: return function(Plain<float>());
  }
}

int tiles_of(const Video& video, int tile) { return (video.tokens + tile - 1) / tile; }

template <int kWidth, class Products>
void tile_products(const ProductsCall& call, Products) {
  using Kernel = TileProducts<Products, kWidth>;
  const int tiles = tiles_of(call.video, Products::kTile);
  const ProductsParams params = {call, tiles, blocks_of(call.rows, tiles), call.rows.first > 0};
  launch<Kernel>(Kernel::launch_blocks(params), Kernel::kSharedBytes, call.stream.handle, params);
}

}  // namespace

Cut relation_cut(const Tensor& student, const Tensor& teacher, int device) {
  const bool tensor_cores = in_pieces(student) && in_pieces(teacher) && student.dtype == teacher.dtype;
  const DType accumulated = student.dtype == DType::float64 ? DType::float64 : DType::float32;
  Cut cut = {0, tensor_cores ? student.dtype : accumulated, 0, 0};
  with_products(cut.coefficient_type, device, [&](auto products) {
    cut.tile = products.kTile;
    cut.side_by_side = products.kBlocksPerSm * multiprocessors(device).count;
    cut.channels = student.channels > cut.tile ? 2 * cut.tile : cut.tile;
  });
  return cut;
}

void relation_distances(const DistancesCall& call) {
  use_device(call.stream.device);
  with_products(call.coefficient_type, call.stream.device, [&](auto products) {
    using Kernel = Distances<decltype(products)>;
    const int tiles = tiles_of(call.video, Kernel::kTile);
    const int64_t of_a_video = places(call.rows, tiles), wanted = of_a_video * call.video.batch;
    const int64_t room = Kernel::kBlocksPerSm * multiprocessors(call.stream.device).count;
    const int64_t launched = wanted < room ? wanted : room;
    launch<Kernel>(launched, Kernel::kSharedBytes, call.stream.handle,
                   {call, tiles, of_a_video, blocks_of(call.rows, tiles), Kernel::stretch_of(call, wanted / launched)});
  });
}

void relation_products(const ProductsCall& call) {
  use_device(call.stream.device);
  with_products(call.coefficient_type, call.stream.device, [&](auto products) {
    if (call.factors.channels > products.kTile)
      tile_products<2>(call, products);
    else
      tile_products<1>(call, products);
  });
}

void relation_project(const ProjectCall& call) {
  use_device(call.stream.device);
  if (call.student.dtype == DType::float64)
    launch<Project<double>>(Project<double>::blocks(call), 0, call.stream.handle, call);
  else
    launch<Project<float>>(Project<float>::blocks(call), 0, call.stream.handle, call);
}

}  // namespace cuda
}  // namespace lgf
