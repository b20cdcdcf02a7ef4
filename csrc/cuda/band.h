// The tuned kernels' tile: window 7, half precision, tensor cores.
//
// A block owns 8 x 16 tokens of one frame. The tokens of another frame within reach are its halo, a box of 14 x 22,
// held as 14 x 24 so that its columns begin at a multiple of 8. Each of 8 warps owns 2 rows x 8 columns of the tile,
// the 16 rows of a matrix product, whose windows reach 8 rows x 14 columns of the halo. A warp multiplies these 8 rows,
// 16 columns each, and no others: a band of the dense product, 128 keys for the 49 a query wants.
//
//     tile      row wy + 0..1, column wx + qx                       wy = 0, 2, 4, 6    wx = 0, 8    qx = 0..7
//     halo      row wy + j,    column wx + kx                       j  = 0..7          kx = 0..15
//     offset    dy = j - (0..1), dx = kx - 1 - qx                   wanted where 0 <= dy, dx < 7
//
// Features pass through shared memory kChunk channels at a time, the next chunk on its way while one is multiplied.
#pragma once

#include "forward.h"

namespace lgf {
namespace cuda {
namespace band {

constexpr int kWindow = 7, kPositions = kWindow * kWindow, kRadius = kWindow / 2;
constexpr int kThreads = 256;
constexpr int kRows = 8, kCols = 16, kTokens = kRows * kCols;
constexpr int kHaloRows = kRows + kWindow - 1, kHaloCols = 24, kHalo = kHaloRows * kHaloCols;
constexpr int kHaloLeft = kRadius + 1;  // the halo's first column lies so far left of the tile's
constexpr int kChunk = 32;              // channels
constexpr int kPieces = kChunk / 8;     // of 16 bytes, 8 channels each
constexpr int kRowBytes = kChunk * 2;
constexpr int kStages = 2;

LGF_DEVICE int lane() { return thread_index() % 32; }
LGF_DEVICE int warp_y() { return thread_index() / 64 * 2; }
LGF_DEVICE int warp_x() { return thread_index() / 32 % 2 * 8; }

// Where a piece of a token's chunk lies. Eight tokens in a row, the rows of a matrix, fill two lines of 128 bytes for
// every piece; the exchange of pieces spreads any one piece of them over all banks. It repeats every eight tokens:
// place(n + 8 m, piece) is place(n, piece) + 8 m kRowBytes, which lets addresses differ by constants.
LGF_DEVICE int place(int token, int piece) { return token * kRowBytes + ((piece ^ (token >> 1)) & (kPieces - 1)) * 16; }

// Begins to copy eight channels of a token; zeros if they are not `wanted`, or past the last channel.
template <class Half>
LGF_DEVICE void copy_piece(const Tensor& f, int b, int t, int y, int x, int c, bool wanted, char* to) {
  wanted = wanted && c < f.channels;
  copy_async(to, static_cast<const Half*>(f.data) + (wanted ? offset(f, b, t, y, x) + c : 0), wanted);
}

// Begins to copy the chunk at channel c0 of a tile's halo in frame `key_t`, and then of the tile itself in frame
// `query_t` if `kWithTile`. Outside the frame there are zeros; so there are everywhere in a frame that does not exist.
template <class Half, bool kWithTile>
LGF_DEVICE void copy_chunk(const Tensor& f, const Grid& grid, const Tile& tile, int key_t, int query_t, int c0,
                           char* chunk) {
  const bool exists = key_t >= 0 && key_t < grid.frames;
  LGF_NO_UNROLL  // the addresses of several rounds at once would cost registers that the products need
  for (int i = thread_index(); i < (kHalo + (kWithTile ? kTokens : 0)) * kPieces; i += kThreads) {
    const int token = i / kPieces, piece = i % kPieces, own = token - kHalo;
    const bool is_key = !kWithTile || own < 0;
    const int column = token % kHaloCols;
    const int y = tile.y0 + (is_key ? token / kHaloCols - kRadius : own / kCols);
    const int x = tile.x0 + (is_key ? column - kHaloLeft : own % kCols);
    const bool wanted = is_key ? exists && column >= 1 && column < kCols + kWindow : true;
    copy_piece<Half>(f, tile.b, is_key ? key_t : query_t, y, x, c0 + piece * 8, wanted && in_frame(grid, y, x),
                     chunk + place(token, piece));
  }
  copy_commit();
}

// One number for each (token of the warp, token of its band), as the lanes of a warp hold the result of a product:
// [j][h][e] is row e / 2 of the warp's two, column lane / 4, and column h * 8 + lane % 4 * 2 + e % 2 of the band's row j.
using Band = float[8][2][4];

// Calls function(token of the tile, token of the halo, slot, number) for those of this lane that a window holds.
template <class Function>
LGF_DEVICE void for_each_wanted(Band& band, Function&& function) {
  const int qx = lane() / 4;
  LGF_UNROLL
  for (int j = 0; j < 8; ++j) {
    LGF_UNROLL
    for (int h = 0; h < 2; ++h) {
      LGF_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = e / 2, kx = h * 8 + lane() % 4 * 2 + e % 2;
        const int dy = j - row, dx = kx - 1 - qx;
        if (dy >= 0 && dy < kWindow && dx >= 0 && dx < kWindow)
          function((warp_y() + row) * kCols + warp_x() + qx, (warp_y() + j) * kHaloCols + warp_x() + kx,
                   dy * kWindow + dx, band[j][h][e]);
      }
    }
  }
}

LGF_DEVICE void clear(Band& band) {
  LGF_UNROLL
  for (int i = 0; i < 8 * 2 * 4; ++i) band[i / 8][i / 4 % 2][i % 4] = 0;
}

}  // namespace band
}  // namespace cuda
}  // namespace lgf
