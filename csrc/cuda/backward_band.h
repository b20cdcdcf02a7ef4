// Backward (backward.h) by tensor cores: window 7, half precision, the tile of band.h.
//
// A warp multiplies the coefficients of its 16 tokens, a band of 8 x 16 tokens of a halo each, with that band's
// features. The coefficients of both sides stay in registers, as the first operand of the products; the features pass
// through shared memory chunk by chunk. Where they will lie, the windows are gathered from before that.
//
// The products are made in the features' type. float16 has not the range of a gradient, so that each token's coefficients
// are brought near 1 by a power of two, which is taken out of the sums again.
#pragma once

#include <type_traits>

#include "backward.h"
#include "band.h"

namespace lgf {
namespace cuda {

template <class Half>
struct BandBackward {
  using Params = BackwardParams;
  static constexpr bool kScaled = std::is_same<Half, Float16>::value;
  // With 128 registers, room for two blocks, what comes with the scales would have to be spilled.
  static constexpr int kThreads = band::kThreads, kBlocksPerSm = kScaled ? 1 : 2;

  // Numbers of a token's window in shared memory: lanes that look from 8 tokens at one, or from one at 8, meet other banks.
  static constexpr int kPitch = 53;
  static constexpr int kWindowBytes = band::kHalo * kPitch * 4;
  static constexpr int kStageBytes = band::kHalo * band::kRowBytes;
  static constexpr int kSharedBytes = kWindowBytes + band::kHalo * 4;  // the windows, then norms of their tokens
  static_assert(band::kStages * kStageBytes <= kWindowBytes, "the features lie where the windows were");

  // The first operand of the band's products with one side: 16 tokens x 16 of row j, in units of powers of two.
  struct Coefficients {
    unsigned a[8][4];
    int exponent[2];  // of this lane's token in each of the warp's two rows
  };

  // A thread's part of the sums: 4 groups of 8 channels; [n][e] is row e / 2, channel n * 8 + lane % 4 * 2 + e % 2.
  using Sums = float[band::kChunk / 8][4];

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile tile(p.grid, p.grid.frames, band::kRows, band::kCols);
    Coefficients coefficients[2];
    gather(p, tile, 0, shared, coefficients[0]);
    gather(p, tile, 1, shared, coefficients[1]);

    float factors[2][2];  // from the units of side 0 to those of side 1, and from those to none
    LGF_UNROLL
    for (int row = 0; row < 2; ++row) {
      factors[0][row] = power_of_two(coefficients[0].exponent[row] - coefficients[1].exponent[row]);
      factors[1][row] = power_of_two(coefficients[1].exponent[row]);
    }

    const int chunks = (p.features.channels + band::kChunk - 1) / band::kChunk;
    const int first_pass = p.norms ? 0 : 1, steps = (2 - first_pass) * chunks * 2;
    Owners owners(p, tile);
    copy(p, tile, 0, 0, shared);
    for (int step = 0; step < steps; step += 2) {
      const int pass = first_pass + step / (2 * chunks), c0 = step / 2 % chunks * band::kChunk;
      Sums sums = {};
      LGF_UNROLL
      for (int side = 0; side < 2; ++side) {
        if (step + side + 1 < steps) {
          copy(p, tile, 1 - side, (step + side + 1) / 2 % chunks * band::kChunk, shared + (1 - side) * kStageBytes);
          copy_wait<1>();
        } else {
          copy_wait<0>();
        }
        sync_block();  // the chunk is there
        multiply_chunk(coefficients[side].a, shared + side * kStageBytes, sums);
        sync_block();  // the chunk has been read by all
        if (kScaled) rescale(sums, factors[side]);
      }
      if (pass == 0) owners.project(p, c0, sums);
      else owners.write(p, c0, sums);
      if (pass == 0 && step + 2 == 2 * chunks) owners.end_projection();
    }
  }

 private:
  static LGF_DEVICE void copy(const Params& p, const Tile& tile, int which, int c0, char* stage) {
    band::copy_chunk<Half, false>(p.features, p.grid, tile, tile.t + 1 - 2 * which, tile.t, c0, stage);
  }

  // ---- coefficients ---------------------------------------------------------------------------

  static LGF_DEVICE void gather(const Params& p, const Tile& tile, int which, char* shared, Coefficients& out) {
    const Side side(p, tile, which);
    float* windows = reinterpret_cast<float*>(shared);
    float* norms = windows + band::kHalo * kPitch;
    band::Band g;
    band::clear(g);
    if (side.exists) {
      if (side.as_query.g) {
        load_windows(p, side.as_query, side.pair, tile.y0, tile.x0, band::kRows, band::kCols, windows);
        sync_block();
        band::for_each_wanted(g, [&](int token, int, int slot, float& v) { v += windows[token * kPitch + slot]; });
        sync_block();
      }
      if (side.as_key.g) {
        load_windows(p, side.as_key, side.pair, tile.y0 - band::kRadius, tile.x0 - band::kHaloLeft, band::kHaloRows,
                     band::kHaloCols, windows);
        sync_block();
        band::for_each_wanted(g, [&](int, int other, int slot, float& v) {
          v += windows[other * kPitch + band::kPositions - 1 - slot];
        });
      }
      load_norms(p, tile, side, norms);
      sync_block();  // the norms are there, and the windows have been read: what is next may lie over them
      band::for_each_wanted(g, [&](int, int other, int, float& v) { v = scaled(v, 1.0f, norms[other]); });
    }
    pack(g, out);
  }

  // The windows of a box of tokens, scaled, into shared memory; 0 outside the frame.
  static LGF_DEVICE void load_windows(const Params& p, const LogitGradient& gradient, int64_t pair, int y0, int x0,
                                      int rows, int cols, float* windows) {
    LGF_NO_UNROLL
    for (int i = thread_index(); i < rows * cols * band::kPositions; i += kThreads) {
      const int token = i / band::kPositions, slot = i % band::kPositions;
      const int y = y0 + token / cols, x = x0 + token % cols;
      windows[token * kPitch + slot] =
          in_frame(p.grid, y, x)
              ? coefficient<float>(gradient, token_number(p.grid, pair, y, x), band::kPositions, slot)
              : 0.0f;
    }
  }

  static LGF_DEVICE void load_norms(const Params& p, const Tile& tile, const Side& side, float* norms) {
    LGF_NO_UNROLL
    for (int i = thread_index(); i < band::kHalo; i += kThreads)
      norms[i] = reciprocal_norm<float>(p.norms, p.grid, tile.b, side.t,
                                        tile.y0 - band::kRadius + i / band::kHaloCols,
                                        tile.x0 - band::kHaloLeft + i % band::kHaloCols);
  }

  // The numbers of a token, four lanes', as operands in units of the largest one's power of two.
  static LGF_DEVICE void pack(const band::Band& g, Coefficients& out) {
    float per_unit[2];
    LGF_UNROLL
    for (int row = 0; row < 2; ++row) {
      float largest = 0;
      LGF_UNROLL
      for (int i = 0; i < 8 * 2 * 2; ++i) largest = fmax(largest, fabs(g[i / 4][i / 2 % 2][row * 2 + i % 2]));
      largest = fmax(largest, shuffle_xor(largest, 1));
      largest = fmax(largest, shuffle_xor(largest, 2));
      out.exponent[row] = exponent_of(largest);
      per_unit[row] = power_of_two(-out.exponent[row]);
    }
    LGF_UNROLL
    for (int i = 0; i < 8 * 4; ++i) {
      const int j = i / 4, h = i % 4 / 2, row = i % 2;
      const float* pair = &g[j][h][row * 2];
      out.a[j][i % 4] = pack_pair(pair[0] * per_unit[row], pair[1] * per_unit[row]);
    }
  }

  static LGF_DEVICE unsigned pack_pair(float low, float high) {
    return narrow<Half>(low).bits | static_cast<unsigned>(narrow<Half>(high).bits) << 16;
  }

  // The exponent of a positive number, within bounds that leave float32 room for sums in units of both sides.
  static LGF_DEVICE int exponent_of(float largest) {
    unsigned bits;
    memcpy(&bits, &largest, sizeof bits);
    const int exponent = static_cast<int>(bits >> 23) - 127;
    if (!kScaled || exponent == 128 || largest == 0.0f) return 0;
    return exponent > 40 ? 40 : exponent < -60 ? -60 : exponent;
  }

  static LGF_DEVICE float power_of_two(int exponent) {
    const unsigned bits = static_cast<unsigned>(exponent + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
  }

  static LGF_DEVICE void rescale(Sums& sums, const float (&factors)[2]) {
    LGF_UNROLL
    for (int i = 0; i < band::kPieces * 4; ++i) sums[i / 4][i % 4] *= factors[i % 4 / 2];
  }

  // ---- products -------------------------------------------------------------------------------

  // sums += the products of the warp's coefficients and its band of features, over one chunk.
  static LGF_DEVICE void multiply_chunk(const unsigned (&a)[8][4], const char* stage, Sums& sums) {
    const int lane = band::lane();
    const char* others = stage + (band::warp_y() * band::kHaloCols + band::warp_x()) * band::kRowBytes;
    LGF_UNROLL
    for (int piece = 0; piece < band::kPieces; piece += 2) {
      const char* row = others + band::place(lane % 16, piece + lane / 16);
      LGF_UNROLL
      for (int j = 0; j < 8; ++j) {
        unsigned b[4];  // 16 tokens x 16 channels: halves of the row, then pieces
        load_matrices_transposed(b, row + j * band::kHaloCols * band::kRowBytes);
        multiply<Half>(sums[piece], a[j], b[0], b[1]);
        multiply<Half>(sums[piece + 1], a[j], b[2], b[3]);
      }
    }
  }

  // ---- through the normalisation ----------------------------------------------------------------

  // The two tokens whose sums this thread holds a part of.
  struct Owners {
    const Half* features;  // of the one in the upper row
    Half* gradient;
    float r[2], along[2];  // reciprocal norm, 0 outside the frame; < df^, f^ >

    LGF_DEVICE Owners(const Params& p, const Tile& tile) {
      const int y = tile.y0 + band::warp_y(), x = tile.x0 + band::warp_x() + band::lane() / 4;
      const int channel = band::lane() % 4 * 2;
      features = static_cast<const Half*>(p.features.data) + offset(p.features, tile.b, tile.t, y, x) + channel;
      gradient = static_cast<Half*>(p.gradient) +
                 token_number(p.grid, int64_t(tile.b) * p.grid.frames + tile.t, y, x) * p.features.channels + channel;
      LGF_UNROLL
      for (int row = 0; row < 2; ++row) {
        r[row] = reciprocal_norm<float>(p.norms, p.grid, tile.b, tile.t, y + row, x);
        along[row] = 0;
      }
    }

    // Calls function(row, first channel of eight, two sums, the two of f^) for this thread's pairs of channels.
    template <class Function>
    LGF_DEVICE void for_each_pair(const Params& p, int c0, const Sums& sums, Function&& function) {
      LGF_UNROLL
      for (int i = 0; i < band::kPieces * 2; ++i) {
        const int row = i % 2, c = c0 + i / 2 * 8;
        if (r[row] == 0.0f || c >= p.features.channels) continue;
        float unit[2] = {0, 0};
        if (p.norms) {
          const unsigned bits = *reinterpret_cast<const unsigned*>(features + row * p.features.stride[2] + c);
          unit[0] = r[row] * widen(Half{static_cast<std::uint16_t>(bits & 0xffff)});
          unit[1] = r[row] * widen(Half{static_cast<std::uint16_t>(bits >> 16)});
        }
        function(row, c, &sums[i / 2][row * 2], unit);
      }
    }

    LGF_DEVICE void project(const Params& p, int c0, const Sums& sums) {
      for_each_pair(p, c0, sums, [&](int row, int, const float* sum, const float* unit) {
        along[row] += sum[0] * unit[0] + sum[1] * unit[1];
      });
    }

    LGF_DEVICE void end_projection() {
      LGF_UNROLL
      for (int row = 0; row < 2; ++row) {
        along[row] += shuffle_xor(along[row], 1);
        along[row] += shuffle_xor(along[row], 2);
        along[row] = projected(along[row], r[row]);
      }
    }

    LGF_DEVICE void write(const Params& p, int c0, const Sums& sums) {
      for_each_pair(p, c0, sums, [&](int row, int c, const float* sum, const float* unit) {
        const float low = p.norms ? (sum[0] - along[row] * unit[0]) * r[row] : sum[0];
        const float high = p.norms ? (sum[1] - along[row] * unit[1]) * r[row] : sum[1];
        const int64_t below = static_cast<int64_t>(row) * p.grid.cols * p.features.channels;
        *reinterpret_cast<unsigned*>(gradient + below + c) = pack_pair(low, high);
      });
    }
  };
};

}  // namespace cuda
}  // namespace lgf
