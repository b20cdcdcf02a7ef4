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
    const Pair pair(p, tile);
    float* zT = reinterpret_cast<float*>(shared + band::kStages * kStageBytes);
    float* zS = reinterpret_cast<float*>(shared);
    float* norms = zT + band::kTokens * kPitch;  // of two sources in turn

    if (p.cached) fuse_cached<kThreads>(p, tile, band::kRows, band::kCols, kPitch, zT);
    band::Band z;
    band::clear(z);
    Position at{p.cached ? p.count - 1 : 0, 0};
    copy(p, tile, pair, at, shared);
    for (int step = 0; at.m < p.count; ++step) {
      const Position next = at.next(p);
      float* const its_norms = norms + at.m % 2 * kNorms;
      if (next.m < p.count) {
        copy(p, tile, pair, next, shared + (step + 1) % band::kStages * kStageBytes);
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      if (at.c0 == 0) load_norms(p, tile, pair, at.m, its_norms);
      sync_block();  // the chunk and the norms are there
      multiply_chunk(shared + step % band::kStages * kStageBytes, z);
      sync_block();  // the chunk has been read by all
      if (next.m != at.m) {
        const bool student = next.m == p.count;
        const float weight = student ? 1.0f : static_cast<float>(p.sources[at.m].weight);
        move_to_slots(z, its_norms, weight, !student && at.m > 0, student ? zS : zT);
      }
      at = next;
    }
    sync_block();
    finish<kThreads>(p, tile, band::kRows, band::kCols, kPitch, zT, zS);
  }

 private:
  // Halo first, then the tile.
  static LGF_DEVICE void copy(const Params& p, const Tile& tile, const Pair& pair, Position at, char* stage) {
    const Tensor& f = p.sources[at.m].tensor;
    const band::Frame<Half> keys(f, p.grid, pair.b, pair.key_t), queries(f, p.grid, pair.b, pair.query_t);
    band::copy_halo(keys, tile, at.c0, stage);
    band::copy_box<band::kRows, band::kCols>(queries, tile.y0, tile.x0, 0, band::kCols, at.c0,
                                             stage + band::kHalo * band::kRowBytes);
    copy_commit();
  }

  static LGF_DEVICE void load_norms(const Params& p, const Tile& tile, const Pair& pair, int m, float* norms) {
    const int64_t video = pair.b * p.grid.frames;
    for (int i = thread_index(); i < kNorms; i += kThreads) {
      const int n = i - band::kHalo;
      norms[i] = n < 0 ? reciprocal_norm<float>(p.sources[m].norms, p.grid, video + pair.key_t,
                                                tile.y0 - band::kRadius + i / band::kHaloCols,
                                                tile.x0 - band::kHaloLeft + i % band::kHaloCols)
                       : reciprocal_norm<float>(p.sources[m].norms, p.grid, video + pair.query_t,
                                                tile.y0 + n / band::kCols, tile.x0 + n % band::kCols);
    }
  }

  // z += the products of the warp's tokens and its band, over one chunk.
  static LGF_DEVICE void multiply_chunk(const char* stage, band::Band& z) {
    const char* tile = stage + band::kHalo * band::kRowBytes;
    const int lane = band::lane();
    LGF_UNROLL
    for (int k = 0; k < band::kPieces; k += 2) {
      unsigned a[4];  // 16 tokens x 16 channels: rows of the tile, then pieces
      load_matrices(a, tile + band::place((band::warp_y() + lane / 8 % 2) * band::kCols + band::warp_x() + lane % 8,
                                          k + lane / 16));
      LGF_UNROLL
      for (int j = 0; j < 8; ++j) {
        unsigned b[4];  // 16 tokens x 16 channels: pieces, then halves of the row
        load_matrices(b, stage + band::place((band::warp_y() + j) * band::kHaloCols + band::warp_x() + lane / 16 * 8 +
                                                 lane % 8,
                                             k + lane / 8 % 2));
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
