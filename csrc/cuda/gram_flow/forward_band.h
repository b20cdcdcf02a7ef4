// Forward pass by tensor cores: the logits of a tile of queries, and the divergence of student and fused teacher.
//
//     z[i, d] = r_i r_{i+d} < f_i, f_{i+d} >        zT = sum_m w_m z_m        KL_i or L2_i and its gradient (divergence.h)
//
// Each source is a band product, chunk by chunk of its channels, one source after the other. After a source the numbers of
// its windows move from the band, spread over a warp's registers, into slots in shared memory: the teachers' are added up,
// the student's lie where the features were. The divergence is computed from slots.
//
// The norms are summed from the operands of the products, which every lane holds. A separate pass would read all features
// from memory once more, a third of this kernel's time; this way each norm is summed 3.6 times.
#pragma once

#include "band.h"

namespace lgf {
namespace cuda {

template <class Half, int kTileRows>
struct BandForward {
  using Params = ForwardParams;
  using Extent = band::Extent<kTileRows>;
  static constexpr int kThreads = Extent::kThreads, kBlocksPerSm = kTileRows < 8 ? 3 : 16 / kTileRows;

  // Numbers of a query's slots: odd, so that lanes that read slots use all banks.
  static constexpr int kPitch = 57;
  static constexpr int kStages = 2;
  static constexpr int kStageBytes = (Extent::kHalo + Extent::kTokens) * band::kRowBytes;
  static constexpr int kSlotBytes = Extent::kTokens * kPitch * 4;
  static constexpr int kNorms = Extent::kHalo + Extent::kTokens;
  static constexpr int kSharedBytes = kStages * kStageBytes + kSlotBytes + (kNorms + Extent::kHalo) * 4;
  static_assert(kSlotBytes <= kStages * kStageBytes, "the student's slots lie where the features were");

  // The chunk of a source that is multiplied next.
  struct Position {
    int m, c0;

    LGF_DEVICE Position next(const Params& p) const {
      const bool last = c0 + band::kChunk >= p.sources[m].tensor.channels;
      return last ? Position{m + 1, 0} : Position{m, c0 + band::kChunk};
    }
  };

  // Sums of the squares of this lane's channels: of its tokens in the warp's two rows, and of two tokens in each row of
  // the band that the warp sums for all. Rows 0 and 1 of the bands of all warps, and the last ones, make up the halo.
  struct Squares {
    float own[2], others[6][2];
  };
  static constexpr LGF_HOST_DEVICE bool is_summed(int j) { return j < 2 || j >= (kTileRows < 8 ? 4 : 6); }
  static constexpr LGF_HOST_DEVICE int summed(int j) { return j < 2 ? j : j - 2; }

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile tile(p.grid, p.grid.frames - 1, Extent::kRows, band::kCols);
    float* zT = reinterpret_cast<float*>(shared + kStages * kStageBytes);
    float* zS = reinterpret_cast<float*>(shared);
    float* norms = zT + Extent::kTokens * kPitch;  // of the halo, where 0 is a token outside the frame, and of the tile
    int* offsets = reinterpret_cast<int*>(norms + kNorms);

    if (p.cached) fuse_cached<kThreads>(p, tile, Extent::kRows, band::kCols, band::kWindow, kPitch, zT);
    band::Band z;
    band::clear(z);
    Squares squares = {};
    Position at{p.cached ? p.count - 1 : 0, 0};
    begin(p, tile, at.m, offsets);
    copy(p, tile, at, offsets, shared);
    for (int step = 0; at.m < p.count; ++step) {
      const Position next = at.next(p);
      if (next.m < p.count) {
        if (next.m != at.m) begin(p, tile, next.m, offsets);
        copy(p, tile, next, offsets, shared + (step + 1) % kStages * kStageBytes);
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      sync_block();  // the chunk is there
      multiply_chunk(shared + step % kStages * kStageBytes, z, squares);
      if (next.m != at.m) finish_norms(p, squares, offsets, norms);
      sync_block();  // the chunk has been read by all, and the norms are there
      if (next.m != at.m) {
        const bool student = next.m == p.count;
        const float weight = static_cast<float>(p.sources[at.m].weight);
        move_to_slots(z, norms, weight, !student && at.m > 0, student ? zS : zT);
        if (student && p.kept_norms) keep_norms(p, tile, norms);
      }
      at = next;
    }
    sync_block();
    finish<kThreads, band::kWindow>(p, tile, Extent::kRows, band::kCols, band::kWindow, kPitch, zT, zS);
  }

 private:
  static LGF_DEVICE void begin(const Params& p, const Tile& tile, int m, int* offsets) {
    sync_block();  // all have copied the first chunk of a source of one chunk
    band::locate_halo<Extent>(p.sources[m].tensor, p.grid, tile, offsets);
    sync_block();
  }

  static LGF_DEVICE void copy(const Params& p, const Tile& tile, Position at, const int* offsets, char* stage) {
    const Tensor& f = p.sources[at.m].tensor;
    band::copy_chunk<Half, Extent, false>(f, p.grid, tile.b, key_frame(p, tile), at.c0, offsets, stage);
    band::copy_chunk<Half, Extent, true>(f, p.grid, tile.b, query_frame(p, tile), at.c0, offsets,
                                         stage + Extent::kHalo * band::kRowBytes);
    copy_commit();
  }

  // Two fused additions to the sum: one instruction each, after one that widens.
  static LGF_DEVICE void add_squares(float& sum, unsigned pair) {
    const float low = widen(Half{static_cast<std::uint16_t>(pair & 0xffff)});
    const float high = widen(Half{static_cast<std::uint16_t>(pair >> 16)});
    sum += low * low;
    sum += high * high;
  }

  // z += the products of the warp's tokens and its band, over one chunk.
  static LGF_DEVICE void multiply_chunk(const char* stage, band::Band& z, Squares& squares) {
    const int lane = band::lane();
    const char* own = stage + (Extent::kHalo + band::warp_y() * band::kCols + band::warp_x()) * band::kRowBytes;
    const char* others = stage + (band::warp_y() * band::kHaloCols + band::warp_x()) * band::kRowBytes;
    LGF_UNROLL
    for (int k = 0; k < band::kPieces; k += 2) {
      unsigned a[4];  // 16 tokens x 16 channels: rows of the tile, then pieces
      load_matrices(a, own + band::place(lane / 8 % 2 * band::kCols + lane % 8, k + lane / 16));
      LGF_UNROLL
      for (int i = 0; i < 4; ++i) add_squares(squares.own[i % 2], a[i]);
      const char* row = others + band::place(lane / 16 * 8 + lane % 8, k + lane / 8 % 2);
      LGF_UNROLL
      for (int j = 0; j < 8; ++j) {
        unsigned b[4];  // 16 tokens x 16 channels: pieces, then halves of the row
        load_matrices(b, row + j * band::kHaloCols * band::kRowBytes);
        multiply<Half>(z[j][0], a, b[0], b[1]);
        multiply<Half>(z[j][1], a, b[2], b[3]);
        if (!is_summed(j)) continue;
        LGF_UNROLL
        for (int i = 0; i < 4; ++i) add_squares(squares.others[summed(j)][i / 2], b[i]);
      }
    }
  }

  // ---- norms --------------------------------------------------------------------------------------

  static LGF_DEVICE float finished(const Params& p, float& sum) {
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const float r = p.cosine ? reciprocal<float>(sum) : 1.0f;
    sum = 0;
    return r;
  }

  static LGF_DEVICE void finish_norms(const Params& p, Squares& squares, const int* offsets, float* norms) {
    const bool writes = band::lane() % 4 == 0;
    LGF_UNROLL
    for (int row = 0; row < 2; ++row) {
      const float r = finished(p, squares.own[row]);
      if (writes) norms[Extent::kHalo + band::own_token(row)] = r;
    }
    LGF_UNROLL
    for (int j = 0; j < 8; ++j) {
      LGF_UNROLL
      for (int h = 0; h < 2; ++h) {
        if (!is_summed(j)) continue;
        const float r = finished(p, squares.others[summed(j)][h]);
        // Where several warps have summed a token, one of them writes.
        const bool below = band::warp_y() + j >= Extent::kRows && (j >= 6 || band::warp_y() == 0);
        const bool first = (j < 2 || below) && (h == 0 || band::warp_x() > 0);
        const int key = (band::warp_y() + j) * band::kHaloCols + band::warp_x() + h * 8 + band::lane() / 4;
        if (writes && first) norms[key] = offsets[key] < 0 ? 0.0f : r;
      }
    }
  }

  // Stores those of the queries, and of the keys as well if their frame holds no queries at all.
  static LGF_DEVICE void keep_norms(const Params& p, const Tile& tile, const float* norms) {
    float* kept = static_cast<float*>(p.kept_norms);
    const bool keys_too = key_frame(p, tile) == (p.backward ? 0 : p.grid.frames - 1);
    for (int token = thread_index(); token < Extent::kTokens; token += kThreads) {
      const int y = tile.y0 + token / band::kCols, x = tile.x0 + token % band::kCols;
      const int64_t video = int64_t(tile.b) * p.grid.frames;
      if (!in_frame(p.grid, y, x)) continue;
      kept[token_number(p.grid, video + query_frame(p, tile), y, x)] = norms[Extent::kHalo + token];
      if (keys_too) kept[token_number(p.grid, video + key_frame(p, tile), y, x)] = norms[band::opposite(token)];
    }
  }

  // Every slot is always written by the same thread, so that additions need no barrier.
  static LGF_DEVICE void move_to_slots(band::Band& z, const float* norms, float weight, bool add, float* slots) {
    const float* own = norms + Extent::kHalo;
    const float factors[2] = {weight * own[band::own_token(0)], weight * own[band::own_token(1)]};
    band::for_each_number(z, [&](int row, int key, int dy, int dx, bool wanted, float product) {
      float logit = scaled(product, factors[row], norms[key]);
      float* place = slots + band::own_token(row) * kPitch + dy * band::kWindow + dx;
      if (wanted && add) logit += *place;
      if (wanted) *place = logit;
    });
    band::clear(z);
  }
};

}  // namespace cuda
}  // namespace lgf
