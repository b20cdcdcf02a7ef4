// Panels of channels, the unit in which kernels read features, and the buffers of a thread that hold them.
#pragma once

#include "dispatch.h"
#include "simd.h"

namespace lgf {
namespace LGF_ISA {
namespace {

using std::int64_t;

// Vectors of a panel: as many as there are registers for, beside the sums of a tile of products (gram_flow/layout.h).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelVectors = 2;
#endif

template <class T>
constexpr int kPanel = kPanelVectors * kLanes<T>;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Allocates consecutive cache-line aligned pieces of a thread's scratch memory. Without memory it measures how much is
// needed.
class Arena {
 public:
  explicit Arena(char* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<std::uintptr_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }

  std::size_t used() const { return used_; }

 private:
  std::uintptr_t base_;
  std::uintptr_t used_ = 0;
};

// Returns the bytes that Buffers{call, arena} takes from an arena.
template <class Buffers, class Call>
std::size_t measure(const Call& call) {
  Arena arena(nullptr);
  Buffers buffers(call, arena);
  return arena.used();
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
