// Tile of the tuned kernels: window 7, half precision, tensor cores.
//
// A block owns some rows of 16 tokens of one frame, kRows of them. The tokens of another frame within reach are its
// halo, 6 rows and 6 columns more, held 24 columns wide so that they begin at a multiple of 8. Each warp owns 2 rows x 8
// columns of the tile, the 16 rows of a matrix product, whose windows reach 8 rows x 14 columns of the halo. A warp
// multiplies only these 8 rows, 16 columns each: a band of the dense product, 128 keys for the 49 of a query's window.
//
//     tile      row wy + 0..1, column wx + qx                       wy = 0, 2, 4, ..   wx = 0, 8    qx = 0..7
//     halo      row wy + j,    column wx + kx                       j  = 0..7          kx = 0..15
//     offset    dy = j - (0..1), dx = kx - 1 - qx                   wanted where 0 <= dy, dx < 7
//
// Features pass through shared memory kChunk channels at a time; the next chunk is copied while one is multiplied. The place
// in its frame of each token of the halo is computed once, so that copying a chunk costs a few instructions a piece.
#pragma once

#include <climits>

#include "forward.h"

namespace lgf {
namespace cuda {
namespace band {

constexpr int kWindow = 7, kRadius = kWindow / 2;
constexpr int kCols = 16, kHaloCols = 24;
constexpr int kHaloLeft = kRadius + 1;  // columns from the halo's first to the tile's first
constexpr int kChunk = 32;              // channels
constexpr int kPieces = kChunk / 8;     // of 16 bytes, 8 channels each
constexpr int kRowBytes = kChunk * 2;

// Sizes that follow from the number of rows of a tile.
template <int kTileRows>
struct Extent {
  static constexpr int kRows = kTileRows, kTokens = kRows * kCols, kThreads = kTokens * 2;
  static constexpr int kHaloRows = kRows + kWindow - 1, kHalo = kHaloRows * kHaloCols;
};

LGF_DEVICE int lane() { return thread_index() % 32; }
LGF_DEVICE int warp_y() { return thread_index() / 64 * 2; }
LGF_DEVICE int warp_x() { return thread_index() / 32 % 2 * 8; }

// Returns the place of a piece of a token's chunk. Eight successive tokens, the rows of a matrix, fill two lines of 128 bytes
// for every piece; the exchange of pieces spreads each piece of them over all banks. It repeats every eight tokens:
// place(n + 8 m, piece) is place(n, piece) + 8 m kRowBytes, so that addresses differ by constants.
LGF_DEVICE int place(int token, int piece) { return token * kRowBytes + ((piece ^ (token >> 1)) & (kPieces - 1)) * 16; }

// Returns the number in the halo of the token at the same place as a token of the tile, in the other frame.
LGF_DEVICE int opposite(int token) { return (token / kCols + kRadius) * kHaloCols + token % kCols + kHaloLeft; }

// Writes the places of the tokens of a tile's halo in any frame of these features, in pieces; -1 outside, or if unused.
template <class E>
LGF_DEVICE void locate_halo(const Tensor& f, const Grid& grid, const Tile& tile, int* offsets) {
  for (int i = thread_index(); i < E::kHalo; i += E::kThreads) {
    const int column = i % kHaloCols, y = tile.y0 - kRadius + i / kHaloCols, x = tile.x0 - kHaloLeft + column;
    const bool wanted = column >= 1 && column < kCols + kWindow && in_frame(grid, y, x);
    offsets[i] = wanted ? static_cast<int>((y * f.stride[2] + x * f.stride[3]) / 8) : -1;
  }
}

// The tile of a block, and where the frames that it copies from begin. They lie in shared memory, because the products leave no
// registers for what is needed from time to time.
struct Origin {
  Tile tile;
  const char* frames[3];
};

// Returns where the tokens of a frame begin, if there is such a frame.
template <class Half>
LGF_DEVICE const char* start_of_frame(const Tensor& f, int b, int t) {
  return reinterpret_cast<const char*>(static_cast<const Half*>(f.data) + offset(f, b, t, 0, 0));
}

// Begins to copy the chunk at channel c0 of the halo, or of the tile itself if `kTileOnly`, from a frame. Outside the frame and
// past the last channel there are zeros.
template <class E, bool kTileOnly>
LGF_DEVICE void copy_chunk(const char* frame, int channels, int c0, const int* offsets, char* chunk) {
  // Round after round, places and what they are copied from advance by constants: kStep tokens are whole groups of eight
  // (place), and whole rows of the tile.
  constexpr int kTokens = kTileOnly ? E::kTokens : E::kHalo, kStep = E::kThreads / kPieces;
  constexpr int kAhead = kTileOnly ? kStep / kCols * kHaloCols : kStep;
  static_assert(kStep % 8 == 0 && kStep % kCols == 0, "");
  const int piece = thread_index() % kPieces, first = thread_index() / kPieces, c = c0 + piece * 8;
  const char* from = added_up(frame + int64_t(c) * 2);
  const int* source = offsets + (kTileOnly ? opposite(first) : first);
  char* to = chunk + place(first, piece);
  const int least = c < channels ? 0 : INT_MAX;  // of the places that are copied
  LGF_UNROLL
  for (int round = 0; round * kStep < kTokens; ++round) {
    if (kTokens - round * kStep < kStep && first >= kTokens - round * kStep) break;  // only the last round is not whole
    const int pieces = source[round * kAhead];
    // Of what is not wanted nothing is read, so that its address may be any.
    copy_async(to + round * kStep * kRowBytes, from + int64_t(pieces) * 16, pieces >= least);
  }
}

// One number for each (token of the warp, token of its band), in the layout of the result of a product in a warp's lanes:
// [j][h][e] is row e / 2 of the warp's two, column lane / 4, and column h * 8 + lane % 4 * 2 + e % 2 of the band's row j.
using Band = float[8][2][4];

// Calls function(row of the warp's two, token of the halo, dy, dx, wanted, number) for the numbers of this lane; `wanted`: a
// window holds it. A branch for each would cost more than the computation of all.
template <class Function>
LGF_DEVICE void for_each_number(Band& band, Function&& function) {
  const int qx = lane() / 4;
  LGF_UNROLL
  for (int j = 0; j < 8; ++j) {
    LGF_UNROLL
    for (int h = 0; h < 2; ++h) {
      LGF_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = e / 2, kx = h * 8 + lane() % 4 * 2 + e % 2;
        const int dy = j - row, dx = kx - 1 - qx;
        if (dy < 0 || dy >= kWindow) continue;  // known to the compiler
        const bool wanted = dx >= 0 && dx < kWindow;
        function(row, (warp_y() + j) * kHaloCols + warp_x() + kx, dy, dx, wanted, band[j][h][e]);
      }
    }
  }
}

// Returns the number in the tile of this lane's token in one of the warp's two rows.
LGF_DEVICE int own_token(int row) { return (warp_y() + row) * kCols + warp_x() + lane() / 4; }

LGF_DEVICE void clear(Band& band) {
  LGF_UNROLL
  for (int i = 0; i < 8 * 2 * 4; ++i) band[i / 8][i / 4 % 2][i % 4] = 0;
}

}  // namespace band
}  // namespace cuda
}  // namespace lgf
