// Products of tiles of relations by the tensor cores, a warp at a time (mma.sync): bfloat16 or float16, Ampere and newer.
//
// A chunk of an operand is 128 x 64 numbers, 16 KiB, in slabs of rows of 128 bytes, in the order of memory:
//
//     summed along rows      one slab: 128 rows of 64 numbers
//     summed down columns    two slabs: 64 rows of 64 numbers each, the columns 0..63 and 64..127
//
// The eight pieces of 16 bytes of a row are exchanged by its number, so that eight rows' pieces of the same column use all
// banks. Hopper's matrix descriptors call this a swizzle of 128 bytes; it needs slabs that begin at multiples of 1024.
#pragma once

#include "plain.h"

namespace lgf {
namespace cuda {
namespace slab {

constexpr int kTile = 128, kChunk = 64, kThreads = 256;
constexpr int kRowBytes = 128;
constexpr int kHalfBytes = kChunk * kRowBytes;  // of the second slab, where there are two
constexpr int kBytes = 2 * kHalfBytes;

LGF_HOST_DEVICE int place(int row, int piece) { return row * kRowBytes + ((piece ^ row) & 7) * 16; }

// Round after round, places are constants apart: kStep rows are whole groups of eight. Of rows and columns that do not exist
// nothing is read, so that their addresses may be any.
template <class Half, Summed kSummed>
LGF_DEVICE void load(const Matrix& m, char* operand) {
  constexpr int kPieces = kSummed == Summed::along_rows ? 8 : 16, kStep = kThreads / kPieces;  // pieces of a row, rows of a round
  const int piece = thread_index() % kPieces, first = thread_index() / kPieces;
  const char* from = reinterpret_cast<const char*>(static_cast<const Half*>(m.data) + m.at + first * m.stride + piece * 8);
  char* to = operand + piece / 8 * kHalfBytes + place(first, piece % 8);
  const int rows = piece * 8 < m.columns ? m.rows - first : 0;
  from = added_up(from);
  LGF_UNROLL
  for (int n = 0; n < kBytes / 16 / kThreads; ++n, from += kStep * m.stride * 2)
    copy_async(to + n * kStep * kRowBytes, from, n * kStep < rows);
}

}  // namespace slab

// Exchanges numbers between four lanes: each has 2 of each of four groups before, and all 8 of one group after.
LGF_DEVICE void gather_group(unsigned (&pairs)[4]) {
  const int lane = thread_index() % 4;
  const bool odd = lane % 2 == 1, upper = lane / 2 == 1;
  LGF_UNROLL
  for (int k = 0; k < 4; k += 2) {
    const unsigned received = shuffle_xor(odd ? pairs[k] : pairs[k + 1], 1);
    pairs[k] = odd ? received : pairs[k];
    pairs[k + 1] = odd ? pairs[k + 1] : received;
  }
  LGF_UNROLL
  for (int k = 0; k < 2; ++k) {
    const unsigned received = shuffle_xor(upper ? pairs[k] : pairs[k + 2], 2);
    pairs[k] = upper ? received : pairs[k];
    pairs[k + 2] = upper ? pairs[k + 2] : received;
  }
}

// Base of the classes for the tensor cores. The numbers e, e + 1 of a thread are side by side, those of the next lane beside
// them; e + 2, e + 3 are eight rows below, and e + 4 is eight columns to the right, four times.
template <class Half>
struct HalfProducts {
  using Number = float;
  using Coefficient = Half;
  static constexpr DType kCoefficientType = std::is_same<Half, BFloat16>::value ? DType::bfloat16 : DType::float16;
  static constexpr int kThreads = slab::kThreads, kBlocksPerSm = 1;
  static constexpr int kTile = slab::kTile, kChunk = slab::kChunk;
  static constexpr int kOperandBytes = slab::kBytes;
  static constexpr int kNumbers = kTile * kTile / kThreads, kTogether = 16;

  template <Summed kSummed>
  static LGF_DEVICE void load(const Matrix& m, char* operand) {
    slab::load<Half, kSummed>(m, operand);
  }

  // `row` and `column` are those of g[0].
  static LGF_DEVICE void store_at(Half* block, int row, int column, const float (&g)[kTogether]) {
    const int lane = thread_index() % 4;
    LGF_UNROLL
    for (int below = 0; below < 2; ++below) {
      unsigned pairs[4];
      LGF_UNROLL
      for (int group = 0; group < 4; ++group) {
        const float* pair = g + group * 4 + below * 2;
        pairs[group] = narrow<Half>(pair[0]).bits | static_cast<unsigned>(narrow<Half>(pair[1]).bits) << 16;
      }
      gather_group(pairs);
      store_piece(block + (row + below * 8) * kTile + column - lane * 2 + lane * 8, pairs);
    }
  }
};

// Eight warps, two by four, each with 64 x 32 numbers of the product.
template <class Half>
struct Warps : HalfProducts<Half> {
  using Base = HalfProducts<Half>;
  using Base::kChunk;
  using Base::kNumbers;
  // At most 96 KiB, which GPUs of sm_86 and sm_89 have too: one chunk is copied while one is multiplied.
  static constexpr int stages(int) { return 2; }
  static constexpr int kKept = 0;

  static LGF_DEVICE void publish() {}

  template <Summed, Summed>
  static LGF_DEVICE void begin(const char*, const char*, float (&)[kNumbers]) {}
  template <Summed kA, Summed kB>
  static LGF_DEVICE void end(const char* a, const char* b, float (&sums)[kNumbers]) {
    LGF_UNROLL
    for (int k = 0; k < kChunk; k += 16) {
      unsigned columns[2][4];  // 16 each: two products wide
      LGF_UNROLL
      for (int n = 0; n < 2; ++n) load_columns<kB>(columns[n], b, warp_column() + n * 16, k);
      LGF_UNROLL
      for (int m = 0; m < 4; ++m) {
        unsigned rows[4];
        load_rows<kA>(rows, a, warp_row() + m * 16, k);
        LGF_UNROLL
        for (int n = 0; n < 4; ++n)
          multiply<Half>(reinterpret_cast<float(&)[4]>(sums[(m * 4 + n) * 4]), rows, columns[n / 2][n % 2 * 2],
                         columns[n / 2][n % 2 * 2 + 1]);
      }
    }
  }

  static LGF_DEVICE int row(int e) { return warp_row() + e / 16 * 16 + e / 2 % 2 * 8 + thread_index() % 32 / 4; }
  static LGF_DEVICE int column(int e) { return warp_column() + e / 4 % 4 * 8 + thread_index() % 4 * 2 + e % 2; }

  static LGF_DEVICE void store(Half* block, int e, const float (&g)[Base::kTogether]) {
    Base::store_at(block, row(e), column(e), g);
  }

 private:
  static LGF_DEVICE int warp_row() { return thread_index() / 128 * 64; }
  static LGF_DEVICE int warp_column() { return thread_index() / 32 % 4 * 32; }

  // Returns the address of number n along and k down of an operand that is summed down its columns.
  static LGF_DEVICE const char* in_columns(const char* operand, int n, int k) {
    return operand + n / 64 * slab::kHalfBytes + slab::place(k, n % 64 / 8);
  }

  // Loads 16 rows of the product by 16 of the sum: rows, then halves of the sum.
  template <Summed kSummed>
  static LGF_DEVICE void load_rows(unsigned (&r)[4], const char* a, int row, int k) {
    const int lane = thread_index() % 32;
    if (kSummed == Summed::along_rows)
      load_matrices(r, a + slab::place(row + lane % 16, k / 8 + lane / 16));
    else
      load_matrices_transposed(r, in_columns(a, row + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
  }

  // Loads 16 columns of the product by 16 of the sum: halves of the sum, then columns.
  template <Summed kSummed>
  static LGF_DEVICE void load_columns(unsigned (&r)[4], const char* b, int column, int k) {
    const int lane = thread_index() % 32;
    if (kSummed == Summed::along_rows)
      load_matrices(r, b + slab::place(column + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
    else
      load_matrices_transposed(r, in_columns(b, column + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
  }
};

}  // namespace cuda
}  // namespace lgf
