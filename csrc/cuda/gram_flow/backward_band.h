// Backward pass (backward.h) by tensor cores: window 7, half precision, the tile of band.h.
//
// A warp multiplies the coefficients of its 16 tokens, a band of 8 x 16 tokens of a halo each, with that band's
// features. The coefficients of both sides stay in registers, as the first operand of the products; the features pass
// through shared memory chunk by chunk. Before that the windows are gathered from the same memory.
//
// The sums of 256 channels also stay in registers, so that for up to 256 channels the products are computed once. 8 warps
// then fill an SM. Twice as many that compute the products twice would overlap their beginnings and ends, but load every
// halo from L2 twice, which limits these kernels (`make kernel-counts` counts both).
//
// The products are in the features' type. float16 has not the range of a gradient, so that each token's coefficients are
// scaled near 1 by a power of two, by which the sums are divided again.
#pragma once

#include <type_traits>

#include "backward.h"
#include "band.h"

namespace lgf {
namespace cuda {

template <class Half, int kTileRows>
struct BandBackward {
  using Params = BackwardParams;
  using Extent = band::Extent<kTileRows>;
  static constexpr bool kScaled = std::is_same<Half, Float16>::value;
  static constexpr int kThreads = Extent::kThreads, kBlocksPerSm = 256 / kThreads;

  // Windows in shared memory, in the layout of global memory, of bfloat16 or float32: rows of 8, of which 7 count.
  static constexpr int kWindowRow = band::kWindow + 1, kWindowSize = band::kWindow * kWindowRow;
  static constexpr int kMostWindowBytes = Extent::kHalo * kWindowSize * 4;

  static constexpr int kStages = 4;
  static constexpr int kStageBytes = Extent::kHalo * band::kRowBytes;
  // The first chunk, and the windows at the end of what all chunks share; then scales, norms and places of the halo.
  static constexpr int kFeatureBytes = kStageBytes + kMostWindowBytes;
  static constexpr int kSharedBytes = kFeatureBytes + 3 * Extent::kHalo * 4 + sizeof(band::Origin);
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

  // The chunks whose sums are held at a time. Each takes two steps: the halo in the next frame, then in the previous one.
  struct Held {
    int first, count;
  };

  static LGF_DEVICE void run(const Params& p, char* shared) {
    const Tile here(p.grid, p.grid.frames, Extent::kRows, band::kCols);
    float* scales = reinterpret_cast<float*>(shared + kFeatureBytes);
    const Halo halo{scales, scales + Extent::kHalo, reinterpret_cast<int*>(scales + 2 * Extent::kHalo)};
    band::Origin& origin = *reinterpret_cast<band::Origin*>(halo.offsets + Extent::kHalo);
    const Tile& tile = origin.tile;
    const int chunks = (p.features.channels + band::kChunk - 1) / band::kChunk;

    const int counted = counted_sides<float>(p, here, Extent::kRows, band::kCols);
    if (!counted)
      return write_zeros<kThreads, 8>(p, here, Extent::kRows, band::kCols, [&](int64_t at) {
        store_piece(static_cast<Half*>(p.gradient) + at, {0, 0, 0, 0});
      });
    band::locate_halo<Extent>(p.features, p.grid, here, halo.offsets);
    if (thread_index() == 0) {
      origin.tile = here;
      const int frames[3] = {here.t + 1, here.t - 1, here.t};  // towards the sides 0 and 1, and its own
      for (int i = 0; i < 3; ++i) origin.frames[i] = band::start_of_frame<Half>(p.features, here.b, frames[i]);
    }
    sync_block();
    int started = 1;  // copies of the chunks held next, that fits beside the windows
    copy_step(p, origin, counted, {0, chunks < kHeldChunks ? chunks : kHeldChunks}, 0, halo.offsets, shared);
    Coefficients coefficients[2];
    LGF_NO_UNROLL  // half as much code
    for (int side = 0; side < 2; ++side) {
      coefficients[0] = coefficients[1];
      gather(p, tile, counted, side, shared, halo, coefficients[1]);
    }
    float factors[2][2];  // from the units of side 0 to those of side 1, and from those to none
    LGF_UNROLL
    for (int row = 0; row < 2; ++row) {
      factors[0][row] = power_of_two(coefficients[0].exponent[row] - coefficients[1].exponent[row]);
      factors[1][row] = power_of_two(coefficients[1].exponent[row]);
    }

    Owners owners(p, tile);
    const bool twice = p.norms && chunks > kHeldChunks;
    for (int pass = twice ? 0 : 1; pass < 2; ++pass) {
      LGF_NO_UNROLL
      for (int first = 0; first < chunks; first += kHeldChunks) {
        const Held held{first, chunks - first < kHeldChunks ? chunks - first : kHeldChunks};
        for (; started < kStages - 1; ++started) copy_step(p, origin, counted, held, started, halo.offsets, shared);
        Sums sums[kHeldChunks] = {};
        LGF_UNROLL
        for (int n = 0; n < kHeldChunks; ++n) {
          if (n >= held.count) break;
          LGF_UNROLL
          for (int side = 0; side < 2; ++side) {
            const int step = n * 2 + side;
            copy_wait<kStages - 2>();
            sync_block();  // this step's chunk is there, and that of the step before has been read by all
            copy_step(p, origin, counted, held, step + kStages - 1, halo.offsets, shared);
            if (counted >> side & 1) multiply_chunk(coefficients[side].a, shared + step % kStages * kStageBytes, sums[n]);
            if (kScaled) rescale(sums[n], factors[side]);
          }
        }
        sync_block();  // the last chunk has been read by all
        copy_step(p, origin, counted, held, held.count * 2 + kStages - 1, halo.offsets, shared);
        copy_wait<0>();
        sync_block();  // the tile's own features are there
        if (p.norms && (pass == 0 || !twice)) owners.project(held, sums, shared);
        if (pass == 1) {
          owners.finish(p, held, sums, shared);
          sync_block();  // the gradient is there
          write(p, tile, held, halo.offsets, shared);
        }
        sync_block();  // what is next may lie over it
        started = 0;
      }
    }
  }

 private:
  // Begins to copy the features of a step; towards a side that does not count there are none. The steps after the last copy the
  // tile's own features, two chunks each.
  static LGF_DEVICE void copy_step(const Params& p, const band::Origin& origin, int counted, const Held& held, int step,
                                   const int* offsets, char* shared) {
    char* stage = shared + step % kStages * kStageBytes;
    const int n = step / 2, own = (step - held.count * 2) * 2;
    if (n < held.count) {
      if (counted >> step % 2 & 1)
        band::copy_chunk<Extent, false>(origin.frames[step % 2], p.features.channels, (held.first + n) * band::kChunk, offsets,
                                        stage);
    } else if (p.norms) {
      LGF_NO_UNROLL
      for (int i = own; i < own + 2 && i < held.count; ++i)
        band::copy_chunk<Extent, true>(origin.frames[2], p.features.channels, (held.first + i) * band::kChunk, offsets,
                                       own_chunk(held, i, shared));
    }
    copy_commit();  // an empty group at the end, so that the number of groups shows how far the copies are
  }

  // Returns the place of the tile's own features of one of the chunks after the products, and of their gradient.
  static LGF_DEVICE char* own_chunk(const Held& held, int n, char* shared) {
    return shared + (held.count * 2 + n / 2) % kStages * kStageBytes + n % 2 * Extent::kTokens * band::kRowBytes;
  }

  // Writes the gradient from shared memory, in whole pieces.
  static LGF_DEVICE void write(const Params& p, const Tile& tile, const Held& held, const int* offsets, char* shared) {
    const int piece = thread_index() % band::kPieces;
    LGF_NO_UNROLL
    for (int n = 0; n < held.count; ++n) {
      const int c = (held.first + n) * band::kChunk + piece * 8;
      LGF_UNROLL
      for (int i = 0; i < Extent::kTokens * band::kPieces; i += kThreads) {
        const int token = (i + thread_index()) / band::kPieces;
        const int y = tile.y0 + token / band::kCols, x = tile.x0 + token % band::kCols;
        const int64_t frame = int64_t(tile.b) * p.grid.frames + tile.t;
        const int64_t at = token_number(p.grid, frame, y, x) * p.features.channels + c;
        if (c < p.features.channels && offsets[band::opposite(token)] >= 0)
          *reinterpret_cast<Piece*>(static_cast<Half*>(p.gradient) + at) =
              *reinterpret_cast<const Piece*>(own_chunk(held, n, shared) + band::place(token, piece));
      }
    }
  }

  // ---- coefficients ---------------------------------------------------------------------------

  static LGF_DEVICE void gather(const Params& p, const Tile& tile, int counted, int which, char* shared,
                                const Halo& halo, Coefficients& out) {
    const Side side(p, tile, which);
    band::Band g;
    band::clear(g);
    if (counted >> which & 1) {
      describe_halo(p, tile, side, halo);
      if (side.as_query.g) add_windows<false>(p, side, side.as_query, tile, shared, halo, g);
      if (side.as_key.g) add_windows<true>(p, side, side.as_key, tile, shared, halo, g);
      band::for_each_number(g, [&](int, int other, int, int, bool, float& v) {
        v = scaled(v, 1.0f, halo.norms[other]);
      });
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

  // Adds to g the windows of the tile's own tokens, or those of the tokens of the halo whose keys the tile's tokens are.
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
      const bool wanted = halo.offsets[kOfKeys ? token : band::opposite(token)] >= 0;
      const int64_t from = wanted ? token_number(p.grid, side.pair, y, x) * kBytes + i % kWindowPieces * 16 : 0;
      copy_async(windows + i * 16, static_cast<const char*>(gradient.g) + from, wanted);
    }
    copy_commit();
    copy_wait<0>();
    sync_block();  // the windows, scales and norms are there
    const Number* numbers = reinterpret_cast<const Number*>(windows);
    band::for_each_number(g, [&](int row, int other, int dy, int dx, bool wanted, float& v) {
      const int own = band::own_token(row), key_slot = (band::kWindow - 1 - dy) * kWindowRow + band::kWindow - 1 - dx;
      const int at = kOfKeys ? other * kWindowSize + key_slot : own * kWindowSize + dy * kWindowRow + dx;
      // Beside a window lies another one, so that unwanted numbers can be read as well.
      const float g_scaled = number(numbers[at]) * halo.scales[kOfKeys ? other : band::opposite(own)];
      v += wanted ? g_scaled : 0.0f;
    });
    sync_block();  // the windows have been read: what is next may lie over them
  }

  // Packs the numbers of a token, in four lanes, as operands in units of the largest one's power of two.
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

  // Returns the exponent of a positive number, within bounds for which float32 holds sums in units of both sides.
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
    float r[2], along[2];  // reciprocal norm, 0 outside the frame; this lane's part of < df^, f^ >
    float scale;

    LGF_DEVICE Owners(const Params& p, const Tile& tile) : scale(common_scale<float>(p)) {
      const int y = tile.y0 + band::warp_y(), x = tile.x0 + band::warp_x() + band::lane() / 4;
      LGF_UNROLL
      for (int row = 0; row < 2; ++row) {
        r[row] = reciprocal_norm<float>(p.norms, p.grid, tile.b, tile.t, y + row, x);
        along[row] = 0;
      }
    }

    // Calls function(row, two sums, where the two features lie) for this thread's pairs of channels.
    template <class Function>
    LGF_DEVICE void for_each_pair(const Held& held, const Sums (&sums)[kHeldChunks], char* shared,
                                  Function&& function) {
      LGF_UNROLL
      for (int n = 0; n < kHeldChunks; ++n) {
        if (n >= held.count) break;
        LGF_UNROLL
        for (int i = 0; i < band::kPieces * 2; ++i) {
          const int row = i % 2, piece = i / 2;
          char* pair = own_chunk(held, n, shared) + band::place(band::own_token(row), piece) + band::lane() % 4 * 4;
          function(row, &sums[n][piece][row * 2], reinterpret_cast<unsigned*>(pair));
        }
      }
    }

    LGF_DEVICE float low(int row, unsigned pair) {
      return r[row] * widen(Half{static_cast<std::uint16_t>(pair & 0xffff)});
    }
    LGF_DEVICE float high(int row, unsigned pair) {
      return r[row] * widen(Half{static_cast<std::uint16_t>(pair >> 16)});
    }

    LGF_DEVICE void project(const Held& held, const Sums (&sums)[kHeldChunks], char* shared) {
      for_each_pair(held, sums, shared, [&](int row, const float* sum, const unsigned* pair) {
        along[row] += sum[0] * low(row, *pair) + sum[1] * high(row, *pair);
      });
    }

    // Replaces the features by the gradient.
    LGF_DEVICE void finish(const Params& p, const Held& held, const Sums (&sums)[kHeldChunks], char* shared) {
      float whole[2], factor[2];
      LGF_UNROLL
      for (int row = 0; row < 2; ++row) {
        whole[row] = along[row] + shuffle_xor(along[row], 1);
        whole[row] = projected(whole[row] + shuffle_xor(whole[row], 2), r[row]);
        factor[row] = p.norms ? scale * r[row] : scale;
      }
      for_each_pair(held, sums, shared, [&](int row, const float* sum, unsigned* pair) {
        const unsigned unit = p.norms ? *pair : 0;
        *pair = pack_pair(factor[row] * (sum[0] - whole[row] * low(row, unit)),
                          factor[row] * (sum[1] - whole[row] * high(row, unit)));
      });
    }
  };
};

}  // namespace cuda
}  // namespace lgf
