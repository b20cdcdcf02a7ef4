// Shapes of the per-thread buffers the kernels work in.
//
// Packed row: the features of one image row as panels of kPanel channels,
//     [panel][token][kPanel]       tokens = halo + W + halo, zeros in the halo and in missing channels.
// Neighbouring tokens of a panel are neighbours in memory, at distances known at compile time.
//
// Planes: one value per (window position, token) of an image row,
//     [dy * K + dx][pitch]         tokens along the lanes: softmax and masks need no lane exchange.
#pragma once

#include "../common/simd.h"
#include "calls.h"

namespace lgf {
namespace LGF_ISA {
namespace {

using std::int64_t;

// Register tiles. With 32 vector registers: 4 queries x 7 offsets = 28 accumulators; with 16: 3 x 4 = 12.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileTokens = 4;
constexpr int kMaxOffsets = 7;
constexpr int kPanelVectors = 4;
#else
constexpr int kTileTokens = 3;
constexpr int kMaxOffsets = 4;
constexpr int kPanelVectors = 2;
#endif

template <class T>
constexpr int kPanel = kPanelVectors * kLanes<T>;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class T>
struct Layout {
  Grid grid;
  int64_t rows, cols;
  int K, radius;
  int64_t panels;       // of one feature tensor
  int64_t plane_pitch;  // tokens of a plane, whole vectors

  Layout(const Grid& grid, int window, int64_t channels)
      : grid(grid),
        rows(grid.rows),
        cols(grid.cols),
        K(window),
        radius(window / 2),
        panels(round_up(channels, kPanel<T>) / kPanel<T>),
        plane_pitch(round_up(grid.cols, kLanes<T>)) {}

  int64_t positions() const { return int64_t(K) * K; }
  int64_t key_tokens() const { return cols + 2 * radius; }
  int64_t query_row_size() const { return panels * cols * kPanel<T>; }
  int64_t key_row_size() const { return panels * key_tokens() * kPanel<T>; }
  int64_t planes_size() const { return positions() * plane_pitch; }
};

// Hands out consecutive cache-line aligned pieces of a thread's scratch memory. Run first without
// memory, it measures how much is needed.
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

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
