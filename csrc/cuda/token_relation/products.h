// Sums of coefficients times features over a panel, for tiles of tokens:  parts[split, b, i] = sum_j g[i, j] x_j.
//
// A block of coefficients is used twice: for the tokens of its row, and transposed for those of its column. Blocks before
// the first or after the last of any weight are left out; blocks between that do not exist count as 0.
#pragma once

#include "plain.h"
#include "tiles.h"

namespace lgf {
namespace cuda {

// Returns a matrix without its first rows and columns.
LGF_DEVICE Matrix moved(const Matrix& m, int rows, int columns) {
  return {m.data, m.dtype, m.at + rows * m.stride + columns, m.stride, m.rows - rows, m.columns - columns};
}

struct ProductsParams {
  ProductsCall call;
  int tiles;
  int64_t blocks;  // of a video
  bool add;        // to what the panels before have left
};

// kWidth: number of products side by side, each of kTile channels.
template <class Products, int kWidth>
struct TileProducts {
  using Params = ProductsParams;
  using T = typename Products::Number;
  using Coefficient = typename Products::Coefficient;
  static constexpr int kThreads = Products::kThreads, kBlocksPerSm = Products::kBlocksPerSm, kTile = Products::kTile;
  static constexpr int kStages = Products::stages(1 + kWidth);
  static constexpr int kStageBytes = (1 + kWidth) * Products::kOperandBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kChannels = kWidth * kTile, kChunks = kTile / Products::kChunk;

  static int64_t launch_blocks(const Params& p) {
    const int64_t across = (p.call.factors.channels + kChannels - 1) / kChannels;
    return across * (p.tiles - p.call.rows.first) * p.call.splits * p.call.video.batch;
  }

  static LGF_DEVICE void run(const Params& p, char* shared) {
    Task task(p);
    T sums[kWidth][Products::kNumbers];
    LGF_UNROLL
    for (int e = 0; e < kWidth * Products::kNumbers; ++e) sums[e / Products::kNumbers][e % Products::kNumbers] = 0;

    const int steps = (task.end - task.begin) * kChunks, turn = (task.middle - task.begin) * kChunks;
    for (int step = 0; step < kStages - 1; ++step) load(p, task, step, steps, shared);
    for (int step = 0; step < turn; ++step) multiply<Summed::down_columns>(p, task, step, steps, shared, sums);
    for (int step = turn; step < steps; ++step) multiply<Summed::along_rows>(p, task, step, steps, shared, sums);
    store(p, task, sums);
  }

 private:
  // The sum of a block: tiles begin .. middle - 1 by transposed blocks, middle .. end - 1 by blocks of its row.
  struct Task {
    int c0, tile, split, b, begin, middle, end;
    bool counts = false;  // of the block that was loaded last

    LGF_DEVICE explicit Task(const Params& p) {
      const Rows& rows = p.call.rows;
      const int across = (p.call.factors.channels + kChannels - 1) / kChannels, down = p.tiles - rows.first;
      const int block = block_index();
      c0 = block % across * kChannels;
      tile = rows.first + block / across % down;
      split = block / across / down % p.call.splits;
      b = block / across / down / p.call.splits;

      const Rows all = reach<T>(p.call.video, TileSpan(p.call.video, tile, kTile), kTile);
      const int span = (down + p.call.splits - 1) / p.call.splits;
      begin = greater(all.first, rows.first + split * span);
      end = lesser(lesser(all.end, rows.first + (split + 1) * span), tile < rows.end ? p.tiles : rows.end);
      end = greater(begin, end);
      middle = lesser(greater(tile, begin), end);
    }
  };

  static LGF_DEVICE void load(const Params& p, Task& task, int step, int steps, char* shared) {
    if (step < steps) {
      char* operands = shared + step % kStages * kStageBytes;
      const int other = task.begin + step / kChunks, part = step % kChunks * Products::kChunk;
      const bool transposed = other < task.tile;
      const Pair pair = transposed ? Pair{other, task.tile} : Pair{task.tile, other};
      const int64_t block = (task.b * p.blocks + block_number(pair, p.call.rows.first, p.tiles)) * kTile * kTile;
      if (part == 0) task.counts = any_weight<T>(p.call.video, pair, kTile);
      const int exist = task.counts ? kTile : 0;
      const Matrix g = {p.call.coefficients, Products::kCoefficientType, block, kTile, exist, kTile};
      if (transposed)
        Products::template load<Summed::down_columns>(moved(g, part, 0), operands);
      else
        Products::template load<Summed::along_rows>(moved(g, 0, part), operands);

      const Tensor& x = p.call.factors;
      const int tokens = task.counts ? p.call.video.tokens : 0;
      const Matrix video = {x.data, x.dtype, task.b * x.stride[0], x.stride[3], tokens, x.channels};
      LGF_UNROLL
      for (int n = 0; n < kWidth; ++n)
        Products::template load<Summed::down_columns>(moved(video, other * kTile + part, task.c0 + n * kTile),
                                                      operands + (1 + n) * Products::kOperandBytes);
    }
    copy_commit();
  }

  template <Summed kOrder>
  static LGF_DEVICE void multiply(const Params& p, Task& task, int step, int steps, char* shared,
                                  T (&sums)[kWidth][Products::kNumbers]) {
    copy_wait<kStages - 2>();
    Products::publish();
    sync_block();  // this chunk is there, and the one before has been multiplied by all
    const char* g = shared + step % kStages * kStageBytes;
    const char* x = g + Products::kOperandBytes;
    LGF_UNROLL
    for (int n = 0; n < kWidth; ++n)
      Products::template begin<kOrder, Summed::down_columns>(g, x + n * Products::kOperandBytes, sums[n]);
    load(p, task, step + kStages - 1, steps, shared);
    LGF_UNROLL
    for (int n = 0; n < kWidth; ++n)
      Products::template end<kOrder, Summed::down_columns>(g, x + n * Products::kOperandBytes, sums[n]);
  }

  // Adds in batches: the loads of a batch are under way together, where a store would make each load wait.
  static LGF_DEVICE void store(const Params& p, const Task& task, const T (&sums)[kWidth][Products::kNumbers]) {
    T* out = static_cast<T*>(p.call.parts) + task.split * p.call.part_stride +
             int64_t(task.b) * p.call.video.tokens * p.call.factors.channels;
    constexpr int kAll = kWidth * Products::kNumbers, kBatch = kAll < 16 ? kAll : 16;
    static_assert(kAll % kBatch == 0, "");
    LGF_UNROLL
    for (int first = 0; first < kAll; first += kBatch) {
      T before[kBatch];
      LGF_UNROLL
      for (int k = 0; k < kBatch; ++k) before[k] = p.add && exists(p, task, first + k) ? out[place(p, task, first + k)] : 0;
      LGF_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        const int e = first + k;
        if (exists(p, task, e)) out[place(p, task, e)] = before[k] + sums[e / Products::kNumbers][e % Products::kNumbers];
      }
    }
  }

  // Token and channel of one of a thread's sums, numbered through all products side by side, and its place in the parts.
  static LGF_DEVICE int token(const Task& task, int e) { return task.tile * kTile + Products::row(e % Products::kNumbers); }
  static LGF_DEVICE int channel(const Task& task, int e) {
    return task.c0 + e / Products::kNumbers * kTile + Products::column(e % Products::kNumbers);
  }
  static LGF_DEVICE bool exists(const Params& p, const Task& task, int e) {
    return token(task, e) < p.call.video.tokens && channel(task, e) < p.call.factors.channels;
  }
  static LGF_DEVICE int64_t place(const Params& p, const Task& task, int e) {
    return int64_t(token(task, e)) * p.call.factors.channels + channel(task, e);
  }
};

}  // namespace cuda
}  // namespace lgf
