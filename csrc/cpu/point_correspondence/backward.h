// Backward driver. With P = exp(z - lse) and dz[q, j] = P[q, j] <g_q, r_j - p_q>, zero outside the window,
//
//     df^[q] = sum_{t, j} dz[q, j] e^[j]            de^[j] = sum_q dz[q, j] f^[q] / temperature
//
// A frame's de^ is complete when its queries have passed. The frames of a video are taken in kGroups groups, each by one
// thread and with sums df^ of its own, which are added in order at the end: the same bits for any number of threads.
//
// Queries whose g is 0, in their own frame or where their weight is 0, are left out.
#pragma once

#include "forward.h"

namespace lgf {
namespace LGF_ISA {
namespace {

constexpr int64_t kGroups = 8;

// The queries of a frame that have a gradient.
template <class T>
struct ActiveQueries {
  int64_t count = 0;
  int64_t* numbers;

  ActiveQueries(const PointLayout<T>& layout, Arena& arena) : numbers(arena.take<int64_t>(layout.queries)) {}

  void find(const T* g, int64_t stride, int64_t queries) {
    count = 0;
    for (int64_t n = 0; n < queries; ++n)
      if (g[n * stride] != 0 || g[n * stride + 1] != 0) numbers[count++] = n;
  }
};

template <class T>
struct PointsBackwardBuffers {
  PointLayout<T> layout;
  PackedBlock<T> block;
  ActiveQueries<T> active;
  T* rows;        // [query][channel] of the active queries at a time
  T* panels;      // the same, [channel panel][query][kPanel]
  T* dz;          // [query][block_tokens]
  T* de;          // [channel panel][token][kPanel]
  T* df;          // [query][padded channels]

  PointsBackwardBuffers(const PointsBackwardCall& call, Arena& arena)
      : layout(call.grid, call.features.channels, call.count, false),
        block(layout, arena),
        active(layout, arena),
        rows(arena.take<T>(kBlockQueries * layout.channels)),
        panels(arena.take<T>(kBlockQueries * layout.padded_channels())),
        dz(arena.take<T>(kBlockQueries * layout.block_tokens)),
        de(arena.take<T>(layout.block_size())),
        df(arena.take<T>(kBlockQueries * layout.padded_channels())) {}
};

// What a frame's queries share of a call: (b, 0, t) of each tensor, and the distance from query to query.
template <class T>
struct FramePoints {
  const T *places, *state, *g;
  int64_t stride, state_stride;

  FramePoints(const PointsBackwardCall& call, int64_t b, int64_t t) {
    const int64_t frames = call.grid.frames, first = b * call.count * frames + t, size = call.window > 0 ? 2 : 1;
    places = static_cast<const T*>(call.places) + first * 2;
    g = static_cast<const T*>(call.grad_places) + first * 2;
    state = static_cast<const T*>(call.state) + first * size;
    stride = frames * 2;
    state_stride = frames * size;
  }
};

// A row of logits becomes one of dz.
template <class T>
void logits_to_gradient(const PointsBackwardCall& call, const FramePoints<T>& points, int64_t n, const T* y, const T* x,
                        int64_t width, T* z) {
  const T lse = points.state[n * points.state_stride];
  const T place_y = points.places[n * points.stride], place_x = points.places[n * points.stride + 1];
  const T g_y = points.g[n * points.stride], g_x = points.g[n * points.stride + 1];
  T peak_y = 0, peak_x = 0, reach = static_cast<T>(call.window);
  if (call.window > 0) {
    const int64_t peak = static_cast<int64_t>(points.state[n * points.state_stride + 1]);
    peak_y = static_cast<T>(peak / call.grid.cols);
    peak_x = static_cast<T>(peak % call.grid.cols);
  }
  for (int64_t i = 0; i < width; i += kLanes<T>) {
    const Vec<T> token_y = load<T>(y + i), token_x = load<T>(x + i);
    const Vec<T> p = exp_nonpositive(load<T>(z + i) - lse);
    Vec<T> gradient = p * ((token_y - place_y) * g_y + (token_x - place_x) * g_x);
    if (call.window > 0) gradient = in_window<T>(token_y, token_x, peak_y, peak_x, reach) ? gradient : Vec<T>{};
    store<T>(z + i, gradient);
  }
}

// The queries active[first ..] against a packed block: added to the block's de^, and to `df` (N, padded channels).
template <class T>
void add_queries(const PointsBackwardCall& call, PointsBackwardBuffers<T>& buffers, const TokenBlock<T>& block,
                 const FramePoints<T>& points, const T* queries, int64_t first, int64_t count, T* df) {
  const PointLayout<T>& layout = buffers.layout;
  const int64_t* numbers = buffers.active.numbers + first;
  const int64_t pitch = layout.block_tokens, padded = layout.padded_channels();
  for (int64_t i = 0; i < count; ++i) {
    const T* query = queries + numbers[i] * layout.channels;
    __builtin_memcpy(buffers.rows + i * layout.channels, query, static_cast<std::size_t>(layout.channels) * sizeof(T));
    pack_token<T>(query, layout.channels, T(1), buffers.panels + i * kPanel<T>, count * kPanel<T>);
  }
  buffers.block.logits(buffers.rows, count, block, buffers.dz);
  for (int64_t i = 0; i < count; ++i)
    logits_to_gradient<T>(call, points, numbers[i], buffers.block.y(), buffers.block.x(), block.width,
                          buffers.dz + i * pitch);
  product<T>({buffers.dz, pitch, 1}, count, block.count, buffers.block.tokens(), layout.channel_panels, false,
             {buffers.df, padded, kPanel<T>});
  product<T>({buffers.dz, 1, pitch}, block.count, count, {buffers.panels, count * kPanel<T>}, layout.channel_panels, true,
             {buffers.de, kPanel<T>, block.width * kPanel<T>});
  for (int64_t i = 0; i < count; ++i) {
    T *target = df + numbers[i] * padded, *part = buffers.df + i * padded;
    for (int64_t c = 0; c < padded; c += kLanes<T>) store<T>(target + c, load<T>(target + c) + load<T>(part + c));
  }
}

// From de^ of a block to the gradient of its tokens, in the contiguous output.
template <class T>
void write_block(const PointsBackwardCall& call, PointsBackwardBuffers<T>& buffers, const TokenBlock<T>& block, int64_t b,
                 int64_t t) {
  const PointLayout<T>& layout = buffers.layout;
  const Tensor& f = call.features;
  const int64_t panel_stride = block.width * kPanel<T>;
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const int64_t first = (b * layout.grid.frames + t) * layout.tokens + block.first;
    Storage* target = static_cast<Storage*>(call.grad_features) + first * f.channels;
    for_each_run<T>(layout, block, [&](int64_t i, int64_t y, int64_t x, int64_t count) {
      const Storage* tokens = token_address<Storage>(f, b, t, y, x);
      const Vec<T> r = reciprocal_norms<T>(tokens, f.stride[3], count, f.channels);
      normalisation_backward<T>(tokens, f.stride[3], count, f.channels, r, buffers.de + i * kPanel<T>, panel_stride,
                                target + i * f.channels);
    });
  });
}

template <class T>
void frame_backward(const PointsBackwardCall& call, PointsBackwardBuffers<T>& buffers, int64_t b, int64_t t, T* df) {
  const PointLayout<T>& layout = buffers.layout;
  const FramePoints<T> points(call, b, t);
  const T* queries = static_cast<const T*>(call.queries) + b * call.count * layout.channels;
  buffers.active.find(points.g, points.stride, call.count);
  for (int64_t first = 0; first < layout.tokens; first += layout.block_tokens) {
    const TokenBlock<T> block(layout, first);
    clear(buffers.de, layout.block_size());
    if (buffers.active.count > 0) buffers.block.pack(call.features, b, t, block);
    for_each_query_block(buffers.active.count, [&](int64_t n, int64_t count) {
      add_queries<T>(call, buffers, block, points, queries, n, count, df);
    });
    write_block<T>(call, buffers, block, b, t);
  }
}

template <class T>
void points_backward(const PointsBackwardCall& call) {
  const int64_t frames = call.grid.frames, groups = frames < kGroups ? frames : kGroups, N = call.count;
  const PointLayout<T> layout(call.grid, call.features.channels, N, false);
  const int64_t size = N * layout.padded_channels();
  const Scratch sums(static_cast<std::size_t>(call.grid.batch * groups * size) * sizeof(T));
  T* df = reinterpret_cast<T*>(sums.data());
  const auto of_groups = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    PointsBackwardBuffers<T> buffers(call, arena);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t b = part / groups, group = part % groups;
      clear(df + part * size, size);
      for (int64_t t = group * frames / groups; t < (group + 1) * frames / groups; ++t)
        frame_backward<T>(call, buffers, b, t, df + part * size);
    }
  };
  for_each_thread(call.grid.batch * groups, call.threads, measure<PointsBackwardBuffers<T>>(call), of_groups);

  const auto of_queries = [&](int64_t begin, int64_t end, char*) {
    for (int64_t row = begin; row < end; ++row) {
      const T* first = df + (row / N * groups * N + row % N) * layout.padded_channels();
      T* target = static_cast<T*>(call.grad_queries) + row * layout.channels;
      for (int64_t c = 0; c < layout.channels; ++c) {
        T sum = first[c];
        for (int64_t group = 1; group < groups; ++group) sum += first[group * size + c];
        target[c] = sum;
      }
    }
  };
  if (N > 0) for_each_thread(call.grid.batch * N, call.threads, 0, of_queries);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
