// Forward driver: a softmax over the tokens of a frame and its mean place, block after block of tokens (online softmax). Each
// thread takes frames (b, t): what a frame gives does not depend on who takes it.
//
// With a window a block is a whole frame: the maximum must be known before the sum over what is around it.
#pragma once

#include "frame.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// The sums of one query so far: of e^(z - largest), and of its products with y and x.
template <class T>
struct Sums {
  T largest, total, y, x;
};

template <class T>
LGF_INLINE T exponential(T x) {
  return exp_nonpositive(broadcast<T>(x))[0];
}

template <class T>
T largest_of(const T* z, int64_t width) {
  Vec<T> largest = load<T>(z);
  for (int64_t i = kLanes<T>; i < width; i += kLanes<T>) {
    const Vec<T> v = load<T>(z + i);
    largest = v > largest ? v : largest;
  }
  T result = largest[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

// Adds the tokens [begin, end) of a row of logits, in whole vectors, of which `keep(y, x)` says which count.
template <class T, class Keep>
LGF_INLINE void add_tokens(const T* z, int64_t begin, int64_t end, const T* y, const T* x, Sums<T>& sums, Keep&& keep) {
  Vec<T> total{}, sum_y{}, sum_x{};
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const Vec<T> token_y = load<T>(y + i), token_x = load<T>(x + i);
    const Vec<T> e = exp_nonpositive(load<T>(z + i) - sums.largest);
    const Vec<T> p = keep(token_y, token_x) ? e : Vec<T>{};
    total += p;
    sum_y += p * token_y;
    sum_x += p * token_x;
  }
  sums.total += sum_of_lanes<T>(total);
  sums.y += sum_of_lanes<T>(sum_y);
  sums.x += sum_of_lanes<T>(sum_x);
}

template <class T>
void add_block(const T* z, int64_t width, const T* y, const T* x, Sums<T>& sums) {
  const T largest = largest_of<T>(z, width);
  if (largest > sums.largest) {
    const T scale = exponential<T>(sums.largest - largest);
    sums = {largest, sums.total * scale, sums.y * scale, sums.x * scale};
  }
  add_tokens<T>(z, 0, width, y, x, sums, [](Vec<T>, Vec<T>) { return ~Mask<T>{}; });
}

// The sums over the window around the first of the largest, whose number is returned. NaN anywhere is NaN in the sums.
template <class T>
int64_t add_window(const PointLayout<T>& layout, const T* z, int64_t width, const T* y, const T* x, int64_t window,
                   Sums<T>& sums) {
  sums.largest = largest_of<T>(z, width);
  int64_t peak = 0;
  while (peak + 1 < layout.tokens && !(z[peak] == sums.largest)) ++peak;
  const int64_t cols = layout.grid.cols, row = peak / cols;
  const int64_t first = row > window ? row - window : 0;
  const int64_t last = layout.grid.rows - 1 - row > window ? row + window : layout.grid.rows - 1;
  const T y0 = y[peak], x0 = x[peak], reach = static_cast<T>(window);
  add_tokens<T>(z, first * cols / kLanes<T> * kLanes<T>, (last + 1) * cols, y, x, sums,
                [&](Vec<T> token_y, Vec<T> token_x) { return in_window<T>(token_y, token_x, y0, x0, reach); });
  Vec<T> poison{};
  for (int64_t i = 0; i < layout.tokens / kLanes<T> * kLanes<T>; i += kLanes<T>) poison += load<T>(z + i) - load<T>(z + i);
  sums.total += sum_of_lanes<T>(poison);
  for (int64_t i = layout.tokens / kLanes<T> * kLanes<T>; i < layout.tokens; ++i) sums.total += z[i] - z[i];
  return peak;
}

template <class T>
struct PointsForwardBuffers {
  PointLayout<T> layout;
  PackedBlock<T> block;
  T* logits;      // [query][block_tokens]
  Sums<T>* sums;  // of every query

  PointsForwardBuffers(const PointsForwardCall& call, Arena& arena)
      : layout(call.grid, call.features.channels, call.count, call.window > 0),
        block(layout, arena),
        logits(arena.take<T>(kBlockQueries * layout.block_tokens)),
        sums(arena.take<Sums<T>>(call.count)) {}
};

template <class T>
void points_forward(const PointsForwardCall& call) {
  const int64_t frames = call.grid.frames, N = call.count;
  const auto run = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    PointsForwardBuffers<T> buffers(call, arena);
    const PointLayout<T>& layout = buffers.layout;
    for (int64_t frame = begin; frame < end; ++frame) {
      const int64_t b = frame / frames, t = frame % frames;
      const T* queries = static_cast<const T*>(call.queries) + b * N * layout.channels;
      T* places = static_cast<T*>(call.places) + (b * N * frames + t) * 2;
      T* state = static_cast<T*>(call.state) + (b * N * frames + t) * (call.window > 0 ? 2 : 1);
      for (int64_t n = 0; n < N; ++n) buffers.sums[n] = {-static_cast<T>(__builtin_inf()), T(0), T(0), T(0)};
      for (int64_t first = 0; first < layout.tokens; first += layout.block_tokens) {
        const TokenBlock<T> block(layout, first);
        const T *y = buffers.block.y(), *x = buffers.block.x();
        buffers.block.pack(call.features, b, t, block);
        for_each_query_block(N, [&](int64_t n0, int64_t count) {
          buffers.block.logits(queries + n0 * layout.channels, count, block, buffers.logits);
          for (int64_t i = 0; i < count; ++i) {
            const T* z = buffers.logits + i * layout.block_tokens;
            Sums<T>& sums = buffers.sums[n0 + i];
            if (call.window == 0) add_block<T>(z, block.width, y, x, sums);
            else
              state[(n0 + i) * frames * 2 + 1] =
                  static_cast<T>(add_window<T>(layout, z, block.width, y, x, call.window, sums));
          }
        });
      }
      for (int64_t n = 0; n < N; ++n) {
        const Sums<T>& sums = buffers.sums[n];
        places[n * frames * 2] = sums.y / sums.total;
        places[n * frames * 2 + 1] = sums.x / sums.total;
        state[n * frames * (call.window > 0 ? 2 : 1)] = sums.largest + logarithm(sums.total);
      }
    }
  };
  for_each_thread(call.grid.batch * frames, call.threads, measure<PointsForwardBuffers<T>>(call), run);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
