// Shapes of the buffers of a thread.
//
// Packed row: the features of one image row as panels of kPanel channels,
//     [panel][token][kPanel]       tokens = halo + W + halo, zeros in the halo and in missing channels.
// Neighbouring tokens of a panel are neighbours in memory, at distances known at compile time.
//
// Planes: one value per (window position, token) of an image row,
//     [dy * K + dx][pitch]         tokens along the lanes: softmax and masks need no exchange between lanes.
#pragma once

#include "../common/panels.h"
#include "calls.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Register tiles. With 32 vector registers: 4 queries x 7 offsets = 28 accumulators; with 16: 3 x 4 = 12.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileTokens = 4;
constexpr int kMaxOffsets = 7;
#else
constexpr int kTileTokens = 3;
constexpr int kMaxOffsets = 4;
#endif

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

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
