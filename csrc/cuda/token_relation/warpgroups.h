// Products of tiles of relations by Hopper's tensor cores, four warps at a time (wgmma): operands stay in shared memory,
// as warps.h lays them out, and are described to the hardware by their address, strides and swizzle.
//
// Each of two warpgroups has 64 x 128 numbers of the product. The threads load the next operands while the tensor cores
// multiply.
#pragma once

#include "warps.h"

namespace lgf {
namespace cuda {

template <class Half>
struct Warpgroups : HalfProducts<Half> {
  using Base = HalfProducts<Half>;
  using Base::kChunk;
  using Base::kNumbers;
  static constexpr int stages(int operands) { return 12 / operands; }  // 192 KiB
  static constexpr int kKept = 8;

  static LGF_DEVICE void publish() { fence_async_proxy(); }

  template <Summed kA, Summed kB>
  static LGF_DEVICE void begin(const char* a, const char* b, float (&sums)[kNumbers]) {
    constexpr bool kDownA = kA == Summed::down_columns, kDownB = kB == Summed::down_columns;
    const char* rows = a + warpgroup() * (kDownA ? slab::kHalfBytes : 64 * slab::kRowBytes);
    warpgroup_fence();
    LGF_UNROLL
    for (int k = 0; k < kChunk; k += 16)
      multiply_async<Half, kDownA, kDownB>(sums, described<kA>(rows, k), described<kB>(b, k));
    warpgroup_commit();
  }
  template <Summed, Summed>
  static LGF_DEVICE void end(const char*, const char*, float (&sums)[kNumbers]) {
    warpgroup_wait(sums);
  }

  static LGF_DEVICE int row(int e) {
    return warpgroup() * 64 + thread_index() / 32 % 4 * 16 + e / 2 % 2 * 8 + thread_index() % 32 / 4;
  }
  static LGF_DEVICE int column(int e) { return e / 4 * 8 + thread_index() % 4 * 2 + e % 2; }

  static LGF_DEVICE void store(Half* block, int e, const float (&g)[Base::kTogether]) {
    Base::store_at(block, row(e), column(e), g);
  }

 private:
  static LGF_DEVICE int warpgroup() { return thread_index() / 128; }

  // Returns the matrix descriptor of 16 numbers of the sum from the k-th on: bits 0-13 the address, 16-29 the leading and 32-45
  // the stride byte offset, all without their last four bits, and 62-63 the swizzle, 1 for 128 bytes.
  //
  //     summed along rows      stride: from eight rows to the next; the leading offset is not used, and 1
  //     summed down columns    leading: from 64 columns to the next; stride: from eight rows to the next
  template <Summed kSummed>
  static LGF_DEVICE std::uint64_t described(const char* operand, int k) {
    constexpr bool kDown = kSummed == Summed::down_columns;
    const unsigned start = shared_address(operand) + (kDown ? k * slab::kRowBytes : k * 2);
    constexpr std::uint64_t kLeading = kDown ? slab::kHalfBytes / 16 : 1, kStride = 8 * slab::kRowBytes / 16;
    return std::uint64_t(1) << 62 | kStride << 32 | kLeading << 16 | (start >> 4 & 0x3fff);
  }
};

}  // namespace cuda
}  // namespace lgf
