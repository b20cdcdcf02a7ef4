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

// Register tiles of kTileTokens neighbouring tokens. Of logits (gram.h), with 32 vector registers: 4 queries x 7 offsets = 28
// accumulators; with 16: 3 x 4 = 12. Of gradients (gather.h): tokens x vectors, 4 x 4 or 3 x 4; their offsets take no registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileTokens = 4;
constexpr int kMaxOffsets = 7;
constexpr int kGatherPanels = 1;
#else
constexpr int kTileTokens = 3;
constexpr int kMaxOffsets = 4;
constexpr int kGatherPanels = 2;
#endif
constexpr int kMaxGatherOffsets = 7;

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

  int64_t tiles() const { return cols / kTileTokens + cols % kTileTokens; }  // the rest of a row is single tokens
  int64_t positions() const { return int64_t(K) * K; }
  int64_t key_tokens() const { return cols + 2 * radius; }
  int64_t query_row_size() const { return panels * cols * kPanel<T>; }
  int64_t key_row_size() const { return panels * key_tokens() * kPanel<T>; }
  int64_t planes_size() const { return positions() * plane_pitch; }
};

// Returns the fewest groups of at most `most` that K offsets are split into.
LGF_INLINE int offset_groups(int K, int most) { return (K + most - 1) / most; }

// Calls function(first, offsets) for these groups, as equal as possible.
template <class Function>
LGF_INLINE void for_each_offset_group(int K, int most, Function&& function) {
  const int groups = offset_groups(K, most);
  for (int g = 0; g < groups; ++g) {
    const int first = g * K / groups;
    function(first, (g + 1) * K / groups - first);
  }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
