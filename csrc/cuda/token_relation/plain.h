// Products of two operands of a tile of relations, and their class for all types: plain multiply-adds.
//
// A tile kernel (distances.h, products.h) defines which matrices are multiplied and how the results are used. A class such
// as Plain, here, or Warps and Warpgroups for the tensor cores, defines how a chunk of an operand is loaded and multiplied,
// and which numbers of the product a thread holds:
//
//     kTile          rows and columns of a product
//     kChunk         of the dimension that is summed over, loaded and multiplied at a time
//     kOperandBytes  of such a chunk of one operand in shared memory
//     stages(n)      chunks of n operands that are being copied or multiplied
//     kKept          chunks of a row's operands that `distances` keeps for several pairs; 0: none
//     Number         type of the sums; Coefficient, type of what is stored and multiplied with features
//     load           begins to load a chunk of an operand
//     publish        makes what this thread has loaded, and has arrived, usable by others after a barrier
//     begin, end     sums += a b, at any time between; until `end` returns neither operands nor sums may be used
//     row, column    place in the product of the e-th of this thread's numbers
//     store          stores kTogether of these coefficients, from the e-th on
#pragma once

#include <cstring>

#include "../common/tensor.h"

namespace lgf {
namespace cuda {

// The dimension of a product's sum: an operand lies row by row in memory, and is summed along rows or down columns.
enum class Summed { along_rows, down_columns };

// Returns a value with its sign changed where the other is negative.
LGF_DEVICE float times_sign(float value, float other) {
  std::uint32_t bits, sign;
  std::memcpy(&bits, &value, 4);
  std::memcpy(&sign, &other, 4);
  bits ^= sign & 0x80000000u;
  std::memcpy(&value, &bits, 4);
  return value;
}
LGF_DEVICE double times_sign(double value, double other) { return other < 0 ? -value : value; }

// A part of a matrix in memory: element (i, j) at `at + i stride + j`. Past `rows` and `columns` there are zeros.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t at, stride;
  int rows, columns;
};

template <class T>
struct Plain {
  using Number = T;
  using Coefficient = T;
  static constexpr DType kCoefficientType = sizeof(T) == 4 ? DType::float32 : DType::float64;
  static constexpr int kThreads = 256, kBlocksPerSm = 2;
  static constexpr int kPer = sizeof(T) == 4 ? 4 : 2;  // rows and columns of a thread, 16 apart
  static constexpr int kTile = 16 * kPer, kNumbers = kPer * kPer, kTogether = kNumbers;
  static constexpr int kChunk = 16;
  static constexpr int kPitch = kChunk + 1;  // of a row: neighbours in other banks
  static constexpr int kOperandBytes = kTile * kPitch * static_cast<int>(sizeof(T));
  static constexpr int stages(int) { return 2; }
  static constexpr int kKept = 0;

  template <Summed kSummed>
  static LGF_DEVICE void load(const Matrix& m, char* operand) {
    constexpr bool kAlong = kSummed == Summed::along_rows;
    constexpr int kColumns = kAlong ? kChunk : kTile;
    T* to = reinterpret_cast<T*>(operand);
    for (int n = thread_index(); n < kTile * kChunk; n += kThreads) {
      const int i = n / kColumns, j = n % kColumns;
      const bool wanted = i < m.rows && j < m.columns;
      to[kAlong ? i * kPitch + j : j * kPitch + i] = wanted ? cuda::load<T>(m.data, m.dtype, m.at + i * m.stride + j) : T(0);
    }
  }

  static LGF_DEVICE void publish() {}

  template <Summed, Summed>
  static LGF_DEVICE void begin(const char*, const char*, T (&)[kNumbers]) {}
  template <Summed, Summed>
  static LGF_DEVICE void end(const char* a, const char* b, T (&sums)[kNumbers]) {
    const T* rows = reinterpret_cast<const T*>(a) + row(0) * kPitch;
    const T* columns = reinterpret_cast<const T*>(b) + column(0) * kPitch;
    for (int k = 0; k < kChunk; ++k) {
      LGF_UNROLL
      for (int e = 0; e < kNumbers; ++e)
        sums[e] += rows[e / kPer * 16 * kPitch + k] * columns[e % kPer * 16 * kPitch + k];
    }
  }

  static LGF_DEVICE int row(int e) { return thread_index() / 16 + e / kPer * 16; }
  static LGF_DEVICE int column(int e) { return thread_index() % 16 + e % kPer * 16; }

  static LGF_DEVICE void store(T* block, int e, const T (&g)[kTogether]) {
    LGF_UNROLL
    for (int k = 0; k < kTogether; ++k) block[row(e + k) * kTile + column(e + k)] = g[k];
  }
};

}  // namespace cuda
}  // namespace lgf
