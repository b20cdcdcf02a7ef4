// Forward by tensor cores: the logits of a tile of queries, and the divergence of student and fused teacher.
//
//     z[i, d] = r_i r_{i+d} < f_i, f_{i+d} >        zT = sum_m w_m z_m        KL_i or L2_i and its gradient (divergence.h)
//
// The sources take turns, a band product each, chunk by chunk of their channels. When a source is done, the numbers its
// windows hold move from the band, spread over a warp's registers, into slots in shared memory: the teachers are added
// up there, and the student's lie where the features were. The divergence then works on slots.
#pragma once

#include "band.h"

namespace lgf {
namespace cuda {

template <class Half>
struct BandForward {
  using Params = ForwardParams;
  static constexpr int kThreads = band::kThreads, kBlocksPerSm = 2;

  // Numbers of a query's slots: odd, so that lanes that go through slots meet all banks.
  static constexpr int kPitch = 57;
  static constexpr int kNorms = band::kHalo + band::kTokens;
  static constexpr int kStageBytes = (band::kHalo + band::kTokens) * band::kRowBytes;
  static constexpr int kSlotBytes = band::kTokens * kPitch * 4;
  static constexpr int kSharedBytes = band::kStages * kStageBytes + kSlotBytes + 2 * kNorms * 4;
  static_assert(kSlotBytes <= band::kStages * kStageBytes, "the student's slots lie where the features were");

  // What is multiplied next: a chunk of a source.
  struct Position {
    int m, c0;

    LGF_DEVICE Position next(const Params& p) const {
      const bool last = c0 + band::kChunk >= p.sources[m].tensor.channels;
      return last ? Position{m + 1, 0} : Position{m, c0 + band::kChunk};
    }
  };

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile tile(p.grid, p.grid.frames - 1, band::kRows, band::kCols);
    float* zT = reinterpret_cast<float*>(shared + band::kStages * kStageBytes);
    float* zS = reinterpret_cast<float*>(shared);
    float* norms = zT + band::kTokens * kPitch;  // of two sources in turn

    if (p.cached) fuse_cached<kThreads>(p, tile, band::kRows, band::kCols, kPitch, zT);
    band::Band z;
    band::clear(z);
    Position at{p.cached ? p.count - 1 : 0, 0};
    copy(p, tile, at, shared);
    for (int step = 0; at.m < p.count; ++step) {
      const Position next = at.next(p);
      if (next.m < p.count) {
        copy(p, tile, next, shared + (step + 1) % band::kStages * kStageBytes);
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      if (at.c0 == 0) load_norms(p, tile, at.m, norms + at.m % 2 * kNorms);
      sync_block();  // the chunk and the norms are there
      multiply_chunk(shared + step % band::kStages * kStageBytes, z);
      sync_block();  // the chunk has been read by all
      if (next.m != at.m) {
        const bool student = next.m == p.count;
        const float weight = student ? 1.0f : static_cast<float>(p.sources[at.m].weight);
        move_to_slots(z, norms + at.m % 2 * kNorms, weight, !student && at.m > 0, student ? zS : zT);
      }
      at = next;
    }
    sync_block();
    finish<kThreads>(p, tile, band::kRows, band::kCols, kPitch, zT, zS);
  }

 private:
  static LGF_DEVICE void copy(const Params& p, const Tile& tile, Position at, char* stage) {
    band::copy_chunk<Half, true>(p.sources[at.m].tensor, p.grid, tile, key_frame(p, tile), query_frame(p, tile), at.c0,
                                 stage);
  }

  static LGF_DEVICE void load_norms(const Params& p, const Tile& tile, int m, float* norms) {
    for (int i = thread_index(); i < kNorms; i += kThreads) {
      const int n = i - band::kHalo;
      norms[i] = n < 0 ? reciprocal_norm<float>(p.sources[m].norms, p.grid, tile.b, key_frame(p, tile),
                                                tile.y0 - band::kRadius + i / band::kHaloCols,
                                                tile.x0 - band::kHaloLeft + i % band::kHaloCols)
                       : reciprocal_norm<float>(p.sources[m].norms, p.grid, tile.b, query_frame(p, tile),
                                                tile.y0 + n / band::kCols, tile.x0 + n % band::kCols);
    }
  }

  // z += the products of the warp's tokens and its band, over one chunk.
  static LGF_DEVICE void multiply_chunk(const char* stage, band::Band& z) {
    const int lane = band::lane();
    const char* own = stage + (band::kHalo + band::warp_y() * band::kCols + band::warp_x()) * band::kRowBytes;
    const char* others = stage + (band::warp_y() * band::kHaloCols + band::warp_x()) * band::kRowBytes;
    LGF_UNROLL
    for (int k = 0; k < band::kPieces; k += 2) {
      unsigned a[4];  // 16 tokens x 16 channels: rows of the tile, then pieces
      load_matrices(a, own + band::place(lane / 8 % 2 * band::kCols + lane % 8, k + lane / 16));
      const char* row = others + band::place(lane / 16 * 8 + lane % 8, k + lane / 8 % 2);
      LGF_UNROLL
      for (int j = 0; j < 8; ++j) {
        unsigned b[4];  // 16 tokens x 16 channels: pieces, then halves of the row
        load_matrices(b, row + j * band::kHaloCols * band::kRowBytes);
        multiply<Half>(z[j][0], a, b[0], b[1]);
        multiply<Half>(z[j][1], a, b[2], b[3]);
      }
    }
  }

  // Every slot is always written by the same thread, so that adding needs no barrier.
  static LGF_DEVICE void move_to_slots(band::Band& z, const float* norms, float weight, bool add, float* slots) {
    band::for_each_wanted(z, [&](int query, int key, int slot, float product) {
      const float logit = weight * scaled(product, norms[band::kHalo + query], norms[key]);
      float* place = slots + query * kPitch + slot;
      *place = add ? *place + logit : logit;
    });
    band::clear(z);
  }
};

}  // namespace cuda
}  // namespace lgf
