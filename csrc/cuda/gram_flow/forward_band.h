// Forward pass by tensor cores: the logits of a tile of queries, and the divergence of student and fused teacher.
//
//     z[i, d] = r_i r_{i+d} < f_i, f_{i+d} >        zT = sum_m w_m z_m        KL_i or L2_i and its gradient (divergence.h)
//
// Each source is a band product, chunk by chunk of its channels, one source after the other. After a source the numbers of
// its windows move from the band, spread over a warp's registers, into slots in shared memory: the teachers' are added up,
// the student's lie where the features were. The divergence is computed from slots.
//
// The norms are the diagonals of products of tokens with themselves, whose operands every lane holds. A separate pass would
// read all features from memory once more, a third of this kernel's time. A warp's products with the first and the last row of
// its band have a half that no window wants, and take these rows' tokens there; the other rows' cost products of their own.
// Only a token's own number is read of a diagonal, so that infinities stay in their token.
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
  static constexpr int kSharedBytes = kStages * kStageBytes + kSlotBytes + (kNorms + Extent::kHalo) * 4 + sizeof(band::Origin);
  static_assert(kSlotBytes <= kStages * kStageBytes, "the student's slots lie where the features were");

  // A chunk of a source.
  struct Position {
    int m, c0;

    LGF_DEVICE Position next(const Params& p) const {
      const bool last = c0 + band::kChunk >= p.sources[m].tensor.channels;
      return last ? Position{m + 1, 0} : Position{m, c0 + band::kChunk};
    }
  };

  // Products of tokens with themselves, whose squares are on diagonals: of the tile's tokens in the warp's two rows, and of
  // both halves of some rows of the band. Those of the band's first and last row are in z. Rows 0, 1, 6 and 7 of the bands of
  // all warps make up the halo, but for the rows in the middle of low tiles.
  struct Squares {
    float own[2][4], others[kTileRows < 8 ? 4 : 2][2][4];
  };
  static constexpr LGF_HOST_DEVICE bool is_summed(int j) { return j == 1 || j == 6 || (kTileRows < 8 && (j == 4 || j == 5)); }
  static constexpr LGF_HOST_DEVICE int summed(int j) { return j == 1 ? 0 : j == 6 ? 1 : j - 2; }

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile here(p.grid, p.grid.frames - 1, Extent::kRows, band::kCols);
    float* zT = reinterpret_cast<float*>(shared + kStages * kStageBytes);
    float* zS = reinterpret_cast<float*>(shared);
    float* norms = zT + Extent::kTokens * kPitch;  // of the halo, where 0 is a token outside the frame, and of the tile
    int* offsets = reinterpret_cast<int*>(norms + kNorms);
    band::Origin& origin = *reinterpret_cast<band::Origin*>(offsets + Extent::kHalo);

    if (is_skipped<float>(p, here, Extent::kRows, band::kCols)) return skip(p, here, norms, zS);
    if (thread_index() == 0) origin.tile = here;
    if (p.cached) fuse_cached<kThreads>(p, here, Extent::kRows, band::kCols, band::kWindow, kPitch, zT);
    band::Band z;
    band::clear(z);
    Squares squares = {};
    Position ahead{p.cached ? p.count - 1 : 0, 0};  // the chunk that is copied last
    begin(p, ahead.m, offsets, origin);
    copy(p, ahead, offsets, origin, shared);
    for (int step = 0; ahead.m < p.count; ++step) {
      ahead = ahead.next(p);
      const bool last = ahead.c0 == 0;  // the chunk that is multiplied now is the last of its source
      if (ahead.m < p.count) {
        if (last) begin(p, ahead.m, offsets, origin);
        copy(p, ahead, offsets, origin, shared + (step + 1) % kStages * kStageBytes);
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      sync_block();  // the chunk is there
      multiply_chunk(shared + step % kStages * kStageBytes, z, squares);
      if (last) write_squares(z, squares, norms);
      sync_block();  // the chunk has been read by all, and the squares are there
      if (last) {
        finish_norms(p, offsets, norms);
        sync_block();  // the norms are there
        const int m = ahead.m - 1;
        const bool student = m == p.count - 1;
        const float weight = static_cast<float>(p.sources[m].weight);
        move_to_slots(z, norms, weight, !student && m > 0, student ? zS : zT);
        squares = {};
        if (student && p.kept_norms) keep_norms(p, origin.tile, norms);
      }
    }
    sync_block();
    finish<kThreads, band::kWindow>(p, origin.tile, Extent::kRows, band::kCols, band::kWindow, kPitch, zT, zS);
  }

 private:
  // Writes zeros, and the norms that others read of the tile's tokens as well.
  static LGF_DEVICE void skip(const Params& p, const Tile& tile, float* norms, float* zeros) {
    if (p.kept_norms) {
      LGF_NO_UNROLL
      for (int of_keys = 0; of_keys <= keeps_keys(p, tile); ++of_keys) take_norms(p, tile, of_keys, norms);
      sync_block();  // the norms of skipped tokens are there
      keep_norms(p, tile, norms);
    }
    finish_skipped<kThreads, band::kWindow>(p, tile, Extent::kRows, band::kCols, band::kWindow, zeros);
  }

  static LGF_DEVICE void begin(const Params& p, int m, int* offsets, band::Origin& origin) {
    const Tensor& f = p.sources[m].tensor;
    sync_block();  // all have copied the first chunk of a source of one chunk
    band::locate_halo<Extent>(f, p.grid, origin.tile, offsets);
    if (thread_index() == 0) {
      // Those of the keys and of the queries.
      origin.frames[0] = band::start_of_frame<Half>(f, origin.tile.b, key_frame(p, origin.tile));
      origin.frames[1] = band::start_of_frame<Half>(f, origin.tile.b, query_frame(p, origin.tile));
    }
    sync_block();
  }

  static LGF_DEVICE void copy(const Params& p, Position at, const int* offsets, const band::Origin& origin, char* stage) {
    const int channels = p.sources[at.m].tensor.channels;
    band::copy_chunk<Extent, false>(origin.frames[0], channels, at.c0, offsets, stage);
    band::copy_chunk<Extent, true>(origin.frames[1], channels, at.c0, offsets, stage + Extent::kHalo * band::kRowBytes);
    copy_commit();
  }

  // z += the products of the warp's tokens and its band, over one chunk. No window of the second row of tokens reaches the
  // first row of the band, and none of the first the last: there the band's own tokens take the place of these.
  static LGF_DEVICE void multiply_chunk(const char* stage, band::Band& z, Squares& squares) {
    const int lane = band::lane();
    const char* own = stage + (Extent::kHalo + band::warp_y() * band::kCols + band::warp_x()) * band::kRowBytes;
    const char* others = stage + (band::warp_y() * band::kHaloCols + band::warp_x()) * band::kRowBytes;
    LGF_UNROLL
    for (int k = 0; k < band::kPieces; k += 2) {
      unsigned a[4];  // 16 tokens x 16 channels: rows of the tile, then pieces
      load_matrices(a, own + band::place(lane / 8 % 2 * band::kCols + lane % 8, k + lane / 16));
      LGF_UNROLL
      for (int piece = 0; piece < 4; piece += 2) {
        multiply<Half>(squares.own[0], a[piece], a[piece + 1], a[piece]);
        multiply<Half>(squares.own[1], a[piece], a[piece + 1], a[piece + 1]);
      }
      const char* row = others + band::place(lane / 16 * 8 + lane % 8, k + lane / 8 % 2);
      LGF_UNROLL
      for (int j = 0; j < 8; ++j) {
        unsigned b[4];  // 16 tokens x 16 channels: pieces, then halves of the row
        load_matrices(b, row + j * band::kHaloCols * band::kRowBytes);
        const unsigned both[4] = {b[0], b[2], b[1], b[3]};  // halves of the row, then pieces, as `a` has them
        LGF_UNROLL
        for (int h = 0; h < 2; ++h) {
          const unsigned low = b[h * 2], high = b[h * 2 + 1];
          const unsigned rows[4] = {j == 7 ? low : a[0], j == 0 ? low : a[1], j == 7 ? high : a[2], j == 0 ? high : a[3]};
          multiply<Half>(z[j][h], rows, low, high);
          if (is_summed(j)) multiply<Half>(squares.others[summed(j)][h], both, low, high);
        }
      }
    }
  }

  // ---- norms --------------------------------------------------------------------------------------

  // Returns the number on the diagonal of one half of a product, rows 0 to 7 or 8 to 15. That of token lane / 4 is in the lane
  // whose lane % 4 is half of it.
  static LGF_DEVICE float diagonal(const float (&product)[4], int half) {
    return band::lane() / 4 % 2 ? product[half * 2 + 1] : product[half * 2];
  }
  static LGF_DEVICE bool holds_diagonal() { return band::lane() % 4 == band::lane() / 8; }

  static LGF_DEVICE float others_squared(const band::Band& z, const Squares& squares, int j, int h) {
    return j == 0   ? diagonal(z[j][h], 1)
           : j == 7 ? diagonal(z[j][h], 0)
                    : diagonal(squares.others[summed(j)][h], h);
  }

  // Writes the squares to where the norms will be, for all tokens of the halo and the tile.
  static LGF_DEVICE void write_squares(const band::Band& z, const Squares& squares, float* norms) {
    const bool writes = holds_diagonal();
    LGF_UNROLL
    for (int row = 0; row < 2; ++row)
      if (writes) norms[Extent::kHalo + band::own_token(row)] = diagonal(squares.own[row], row);
    LGF_UNROLL
    for (int j = 0; j < 8; ++j) {
      LGF_UNROLL
      for (int h = 0; h < 2; ++h) {
        if (j > 0 && j < 7 && !is_summed(j)) continue;
        const float sum = others_squared(z, squares, j, h);
        // Where several warps have summed a token, one of them writes: rows 0 of the bands of all warps are the even ones, and
        // rows 7 the odd ones from 7 on.
        const int row = band::warp_y() + j;
        const bool first = j == 1 ? row < 7 : j == 6 ? row >= Extent::kRows : j == 0 || j == 7 || band::warp_y() == 0;
        const int key = row * band::kHaloCols + band::warp_x() + h * 8 + band::lane() / 4;
        if (writes && first && (h == 0 || band::warp_x() > 0)) norms[key] = sum;
      }
    }
  }

  // Replaces squares by reciprocal norms.
  static LGF_DEVICE void finish_norms(const Params& p, const int* offsets, float* norms) {
    LGF_NO_UNROLL
    for (int token = thread_index(); token < kNorms; token += kThreads) {
      const bool outside = token < Extent::kHalo && offsets[token] < 0;
      const float r = p.cosine ? reciprocal<float>(norms[token]) : 1.0f;
      norms[token] = outside ? 0.0f : r;
    }
  }

  // Writes the student's norms of the tile's tokens, without any product of the band, to where `keep_norms` reads them: of the
  // queries, or of the keys at the same places.
  static LGF_DEVICE void take_norms(const Params& p, const Tile& tile, bool of_keys, float* norms) {
    constexpr int kLanes = 8;  // of a token: a line of 128 bytes at a time
    const Tensor& f = p.sources[p.count - 1].tensor;
    const int t = of_keys ? key_frame(p, tile) : query_frame(p, tile);
    LGF_NO_UNROLL
    for (int first = 0; first < Extent::kTokens; first += kThreads / kLanes) {
      const int token = first + thread_index() / kLanes;
      const int y = tile.y0 + token / band::kCols, x = tile.x0 + token % band::kCols;
      const bool inside = in_frame(p.grid, y, x);
      const float part = inside ? part_of_squares_in_pieces<float, kLanes>(f, offset(f, tile.b, t, y, x)) : 0.0f;
      const float sum = sum_of_neighbours<kLanes>(part);
      if (thread_index() % kLanes == 0) norms[of_keys ? band::opposite(token) : Extent::kHalo + token] = reciprocal(sum);
    }
  }

  // Returns whether no tile has the keys of this one as queries.
  static LGF_DEVICE bool keeps_keys(const Params& p, const Tile& tile) {
    return key_frame(p, tile) == (p.backward ? 0 : p.grid.frames - 1);
  }

  // Stores those of the queries, and of the keys as well if no other tile does.
  static LGF_DEVICE void keep_norms(const Params& p, const Tile& tile, const float* norms) {
    float* kept = static_cast<float*>(p.kept_norms);
    const bool keys_too = keeps_keys(p, tile);
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
