// Backward (backward.h) by tensor cores: window 7, half precision, the tile of band.h.
//
// A warp multiplies the coefficients of its 16 tokens, a band of 8 x 16 tokens of a halo each, with that band's
// features. The coefficients of both sides stay in registers, as the first operand of the products; the features pass
// through shared memory chunk by chunk. Where they will lie, the windows are gathered from before that.
//
// The sums of 256 channels stay in registers too, so that up to there the products are made once. One block of 8 warps
// then fills an SM. Two blocks that make the products twice would hide each other's beginnings and ends, but bring every
// halo from L2 twice, which is what these kernels wait for (`make kernel-report` counts both).
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
  using Extent = band::Extent<8>;
  static constexpr bool kScaled = std::is_same<Half, Float16>::value;
  static constexpr int kThreads = Extent::kThreads, kBlocksPerSm = 1;

  // Windows in shared memory as they are in memory, of bfloat16 or float32: rows of 8, of which 7 count.
  static constexpr int kWindowRow = band::kWindow + 1, kWindowSize = band::kWindow * kWindowRow;
  static constexpr int kMostWindowBytes = Extent::kHalo * kWindowSize * 4;

  static constexpr int kStages = 4;
  static constexpr int kStageBytes = Extent::kHalo * band::kRowBytes;
  // The first chunk, and the windows at the end of what all chunks share; then scales, norms and places of the halo.
  static constexpr int kFeatureBytes = kStageBytes + kMostWindowBytes;
  static constexpr int kSharedBytes = kFeatureBytes + 3 * Extent::kHalo * 4;
  static_assert(kStages * kStageBytes <= kFeatureBytes, "the features lie where the windows were");

  // The first operand of the band's products with one side: 16 tokens x 16 of row j, in units of powers of two.
  struct Coefficients {
    unsigned a[8][4];
    int exponent[2];  // of this lane's token in each of the warp's two rows
  };

  // A thread's part of the sums of a chunk: 4 groups of 8 channels; [n][e] is row e / 2, channel n * 8 + lane % 4 * 2 + e % 2.
  using Sums = float[band::kPieces][4];
  static constexpr int kHeldChunks = 8;

  // The halo in shared memory.
  struct Halo {
    float *scales, *norms;
    int* offsets;
  };

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile tile(p.grid, p.grid.frames, Extent::kRows, band::kCols);
    float* scales = reinterpret_cast<float*>(shared + kFeatureBytes);
    const Halo halo{scales, scales + Extent::kHalo, reinterpret_cast<int*>(scales + 2 * Extent::kHalo)};
    const int chunks = (p.features.channels + band::kChunk - 1) / band::kChunk;
    const int first_pass = p.norms && chunks > kHeldChunks ? 0 : 1, steps = (2 - first_pass) * chunks * 2;

    band::locate_halo<Extent>(p.features, p.grid, tile, halo.offsets);
    sync_block();
    copy_step(p, tile, 0, chunks, steps, halo.offsets, shared);
    Coefficients coefficients[2];
    gather(p, tile, 0, shared, halo, coefficients[0]);
    gather(p, tile, 1, shared, halo, coefficients[1]);
    LGF_NO_UNROLL
    for (int step = 1; step < kStages - 1; ++step) copy_step(p, tile, step, chunks, steps, halo.offsets, shared);

    float factors[2][2];  // from the units of side 0 to those of side 1, and from those to none
    LGF_UNROLL
    for (int row = 0; row < 2; ++row) {
      factors[0][row] = power_of_two(coefficients[0].exponent[row] - coefficients[1].exponent[row]);
      factors[1][row] = power_of_two(coefficients[1].exponent[row]);
    }

    Owners owners(p, tile);
    for (int pass = first_pass, step = 0; pass < 2; ++pass) {
      LGF_NO_UNROLL
      for (int first = 0; first < chunks; first += kHeldChunks) {
        Sums sums[kHeldChunks] = {};
        LGF_UNROLL
        for (int n = 0; n < kHeldChunks; ++n) {
          if (first + n >= chunks) break;
          LGF_UNROLL
          for (int side = 0; side < 2; ++side, ++step) {
            copy_wait<kStages - 2>();
            sync_block();  // this step's chunk is there, and that of the step before has been read by all
            copy_step(p, tile, step + kStages - 1, chunks, steps, halo.offsets, shared);
            multiply_chunk(coefficients[side].a, shared + step % kStages * kStageBytes, sums[n]);
            if (kScaled) rescale(sums[n], factors[side]);
          }
        }
        const int c0 = first * band::kChunk;
        if (p.norms && (pass == 0 || first_pass == 1)) owners.project(p, c0, sums);
        if (pass == 1) owners.write(p, c0, sums);
      }
    }
  }

 private:
  // Begins to copy what a step multiplies: of the chunks in turn the halo in the next frame, then in the previous one.
  static LGF_DEVICE void copy_step(const Params& p, const Tile& tile, int step, int chunks, int steps,
                                   const int* offsets, char* shared) {
    if (step < steps)
      band::copy_chunk<Half, Extent, false>(p.features, p.grid, tile.b, tile.t + 1 - step % 2 * 2,
                                            step / 2 % chunks * band::kChunk, offsets,
                                            shared + step % kStages * kStageBytes);
    copy_commit();  // of nothing at the end, so that the number of groups tells how far the copies are
  }

  // ---- coefficients ---------------------------------------------------------------------------

  static LGF_DEVICE void gather(const Params& p, const Tile& tile, int which, char* shared, const Halo& halo,
                                Coefficients& out) {
    const Side side(p, tile, which);
    band::Band g;
    band::clear(g);
    if (side.exists) {
      describe_halo(p, tile, side, halo);
      if (side.as_query.g) add_windows<false>(p, side, side.as_query, tile, shared, halo, g);
      if (side.as_key.g) add_windows<true>(p, side, side.as_key, tile, shared, halo, g);
      band::for_each_wanted(g, [&](int, int other, int, int, float& v) { v = scaled(v, 1.0f, halo.norms[other]); });
      sync_block();  // the norms have been read
    }
    pack(g, out);
  }

  static LGF_DEVICE void describe_halo(const Params& p, const Tile& tile, const Side& side, const Halo& halo) {
    LGF_NO_UNROLL
    for (int i = thread_index(); i < Extent::kHalo; i += kThreads) {
      const int y = tile.y0 - band::kRadius + i / band::kHaloCols, x = tile.x0 - band::kHaloLeft + i % band::kHaloCols;
      halo.norms[i] = reciprocal_norm<float>(p.norms, p.grid, tile.b, side.t, y, x);
      halo.scales[i] = in_frame(p.grid, y, x) ? token_scale<float>(p, token_number(p.grid, side.pair, y, x)) : 0.0f;
    }
  }

  template <bool kOfKeys>
  static LGF_DEVICE void add_windows(const Params& p, const Side& side, const LogitGradient& gradient, const Tile& tile,
                                     char* shared, const Halo& halo, band::Band& g) {
    if (gradient.type == DType::bfloat16)
      add_windows_of<BFloat16, kOfKeys>(p, side, gradient, tile, shared, halo, g);
    else
      add_windows_of<float, kOfKeys>(p, side, gradient, tile, shared, halo, g);
  }

  static LGF_DEVICE float number(float v) { return v; }
  static LGF_DEVICE float number(BFloat16 v) { return widen(v); }

  // g += what the windows of the tile's own tokens say, or those of the halo's of which the tile's tokens are keys.
  template <class Number, bool kOfKeys>
  static LGF_DEVICE void add_windows_of(const Params& p, const Side& side, const LogitGradient& gradient,
                                        const Tile& tile, char* shared, const Halo& halo, band::Band& g) {
    constexpr int kTokens = kOfKeys ? Extent::kHalo : Extent::kTokens, kCols = kOfKeys ? band::kHaloCols : band::kCols;
    constexpr int kBytes = kWindowSize * sizeof(Number), kWindowPieces = kBytes / 16;
    char* windows = shared + kFeatureBytes - kTokens * kBytes;
    const int y0 = tile.y0 - (kOfKeys ? band::kRadius : 0), x0 = tile.x0 - (kOfKeys ? band::kHaloLeft : 0);
    LGF_NO_UNROLL
    for (int i = thread_index(); i < kTokens * kWindowPieces; i += kThreads) {
      const int token = i / kWindowPieces, y = y0 + token / kCols, x = x0 + token % kCols;
      const bool wanted = in_frame(p.grid, y, x);
      const int64_t from = wanted ? token_number(p.grid, side.pair, y, x) * kBytes + i % kWindowPieces * 16 : 0;
      copy_async(windows + i * 16, static_cast<const char*>(gradient.g) + from, wanted);
    }
    copy_commit();
    copy_wait<0>();
    sync_block();  // the windows, scales and norms are there
    const Number* numbers = reinterpret_cast<const Number*>(windows);
    band::for_each_wanted(g, [&](int row, int other, int dy, int dx, float& v) {
      const int own = band::own_token(row), key_slot = (band::kWindow - 1 - dy) * kWindowRow + band::kWindow - 1 - dx;
      const int at = kOfKeys ? other * kWindowSize + key_slot : own * kWindowSize + dy * kWindowRow + dx;
      v += number(numbers[at]) * halo.scales[kOfKeys ? other : band::opposite(own)];
    });
    sync_block();  // the windows have been read: what is next may lie over them
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
    float r[2], along[2];  // reciprocal norm, 0 outside the frame; this lane's part of < df^, f^ >
    float scale;

    LGF_DEVICE Owners(const Params& p, const Tile& tile) {
      const int y = tile.y0 + band::warp_y(), x = tile.x0 + band::warp_x() + band::lane() / 4;
      const int channel = band::lane() % 4 * 2;
      features = static_cast<const Half*>(p.features.data) + offset(p.features, tile.b, tile.t, y, x) + channel;
      gradient = static_cast<Half*>(p.gradient) +
                 token_number(p.grid, int64_t(tile.b) * p.grid.frames + tile.t, y, x) * p.features.channels + channel;
      scale = common_scale<float>(p);
      LGF_UNROLL
      for (int row = 0; row < 2; ++row) {
        r[row] = reciprocal_norm<float>(p.norms, p.grid, tile.b, tile.t, y + row, x);
        along[row] = 0;
      }
    }

    // Calls function(row, first channel of eight, two sums, the two of f^) for this thread's pairs of channels.
    template <class Function>
    LGF_DEVICE void for_each_pair(const Params& p, int c0, const Sums (&sums)[kHeldChunks], Function&& function) {
      LGF_UNROLL
      for (int i = 0; i < kHeldChunks * band::kPieces * 2; ++i) {
        const int row = i % 2, n = i / 2, c = c0 + n * 8;
        if (r[row] == 0.0f || c >= p.features.channels) continue;
        float unit[2] = {0, 0};
        if (p.norms) {
          const unsigned bits = *reinterpret_cast<const unsigned*>(features + row * p.features.stride[2] + c);
          unit[0] = r[row] * widen(Half{static_cast<std::uint16_t>(bits & 0xffff)});
          unit[1] = r[row] * widen(Half{static_cast<std::uint16_t>(bits >> 16)});
        }
        function(row, c, &sums[n / band::kPieces][n % band::kPieces][row * 2], unit);
      }
    }

    LGF_DEVICE void project(const Params& p, int c0, const Sums (&sums)[kHeldChunks]) {
      for_each_pair(p, c0, sums, [&](int row, int, const float* sum, const float* unit) {
        along[row] += sum[0] * unit[0] + sum[1] * unit[1];
      });
    }

    LGF_DEVICE void write(const Params& p, int c0, const Sums (&sums)[kHeldChunks]) {
      float whole[2];
      LGF_UNROLL
      for (int row = 0; row < 2; ++row) {
        whole[row] = along[row] + shuffle_xor(along[row], 1);
        whole[row] = projected(whole[row] + shuffle_xor(whole[row], 2), r[row]);
      }
      for_each_pair(p, c0, sums, [&](int row, int c, const float* sum, const float* unit) {
        const float low = p.norms ? (sum[0] - whole[row] * unit[0]) * r[row] : sum[0];
        const float high = p.norms ? (sum[1] - whole[row] * unit[1]) * r[row] : sum[1];
        const int64_t below = static_cast<int64_t>(row) * p.grid.cols * p.features.channels;
        *reinterpret_cast<unsigned*>(gradient + below + c) = pack_pair(scale * low, scale * high);
      });
    }
  };
};

}  // namespace cuda
}  // namespace lgf
