// Driver of the backward pass: the gradient of sum_{i,d} scale_i g[i, d] z[i, d] with respect to the features.
//
// A token is a query (with its own coefficients, its neighbours as keys) and a key (with the coefficients of the <= K*K
// queries whose windows hold it). From the token's side both are gathers over the window in a neighbouring frame, with
// coefficients
//
//     query side   c[e, x] = g[y, x, e]                            e: offset from the token
//     key side     c[e, x] = g[y + e_y, x + e_x, -e]
//
// so that they are added into one set of planes per neighbouring frame: direction "both" costs no more multiplications than
// one direction, and every element of the gradient is written once.
#pragma once

#include "forward.h"
#include "gather.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Row (b, pair, y) of the coefficients of one direction, in the order of memory.
template <class T>
struct CoefficientRow {
  const T* g;      // (W, K*K)
  const T* scale;  // (W) or null for 1

  CoefficientRow(const LogitGradient& gradient, const Grid& grid, int64_t positions, int64_t b, int64_t pair,
                 int64_t y) {
    const int64_t token = ((b * (grid.frames - 1) + pair) * grid.rows + y) * grid.cols;
    g = static_cast<const T*>(gradient.g) + token * positions;
    scale = gradient.scale ? static_cast<const T*>(gradient.scale) + token : nullptr;
  }

  T scale_of(int64_t x) const { return scale ? scale[x] : T(1); }
};

// The part of the gradient that comes from one neighbouring frame.
template <class T>
class Neighbour {
 public:
  Neighbour(const Layout<T>& layout, Arena& arena)
      : layout_(layout),
        keys_(layout, arena),
        coefficients_(arena.take<T>(layout.positions() * layout.cols)) {}

  // out += contribution of `frame`, reached through `pair`, to row y. `as_query`: coefficients of the
  // direction in which the row's tokens are queries; `as_key`: in which they are keys.
  void add_row(const GramBackwardCall& call, const LogitGradient& as_query, const LogitGradient& as_key, int64_t b,
               int64_t frame, int64_t pair, int64_t y, bool fresh, T* out) {
    keys_.advance(call.features, call.window.cosine, b, frame, y, fresh);
    const int64_t positions = layout_.positions();
    if (as_query.g) set_query_side({as_query, call.grid, positions, b, pair, y});
    else clear(coefficients_, layout_.cols * positions);
    WindowRows<T> rows;
    rows.count = 0;
    for (int dy = 0; dy < layout_.K; ++dy) {
      const int64_t key_y = y + dy - layout_.radius;
      if (key_y < 0 || key_y >= layout_.rows) continue;
      if (as_key.g) add_key_side({as_key, call.grid, positions, b, pair, key_y}, dy);
      rows.features[rows.count] = keys_.row(key_y);
      rows.coefficients[rows.count++] = coefficients_ + dy * layout_.K;
    }
    gather_row<T>(layout_, rows, out);
  }

 private:
  // `queries`: the row itself.
  void set_query_side(const CoefficientRow<T>& queries) {
    const int64_t positions = layout_.positions();
    for (int64_t x = 0; x < layout_.cols; ++x) {
      const T scale = queries.scale_of(x);
      for (int64_t e = x * positions; e < (x + 1) * positions; ++e) coefficients_[e] = queries.g[e] * scale;
    }
  }

  // `queries`: the row at distance dy. A token there, at an offset from one of this row, has that one at the opposite offset.
  void add_key_side(const CoefficientRow<T>& queries, int dy) {
    const int64_t positions = layout_.positions(), radius = layout_.radius;
    for (int64_t query = 0; query < layout_.cols; ++query) {
      const T* g = queries.g + query * positions;
      const T scale = queries.scale_of(query);
      const int64_t before = query + radius + 1 - layout_.cols;  // offsets that lead past the end of the row
      const int64_t end = query < radius ? query + radius + 1 : layout_.K;
      for (int64_t dx = before > 0 ? before : 0; dx < end; ++dx) {
        const int64_t x = query + radius - dx, e = dy * layout_.K + dx;
        coefficients_[x * positions + e] += g[positions - 1 - e] * scale;
      }
    }
  }

  const Layout<T>& layout_;
  KeyRing<T> keys_;
  T* coefficients_;  // [token][K*K]
};

template <class T>
struct GramBackwardBuffers {
  Layout<T> layout;
  Neighbour<T> next, previous;
  T* gradient;  // packed row: gradient of the (normalised) features

  GramBackwardBuffers(const GramBackwardCall& call, Arena& arena)
      : layout(call.grid, call.window.size, call.features.channels),
        next(layout, arena),
        previous(layout, arena),
        gradient(arena.take<T>(layout.query_row_size())) {}
};

// Writes the gradient of row (b, t, y) from a packed row to the contiguous output.
template <class T>
void write_gradient_row(const GramBackwardCall& call, const Layout<T>& layout, const RowIndex& at, T* gradient) {
  const Tensor& f = call.features;
  const int64_t panel_stride = layout.cols * kPanel<T>;
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const int64_t first = ((at.b * layout.grid.frames + at.t) * layout.rows + at.y) * layout.cols;
    Storage* target = static_cast<Storage*>(call.grad) + first * f.channels;
    for_each_group<T>(layout.cols, [&](int64_t x, int64_t count) {
      T* group = gradient + x * kPanel<T>;
      if (call.window.cosine)
        normalisation_backward<T>(token_address<Storage>(f, at.b, at.t, at.y, x), f.stride[3], count, f.channels, group,
                                  panel_stride);
      for (int64_t i = 0; i < count; ++i)
        unpack_token<T>(group + i * kPanel<T>, panel_stride, f.channels, target + (x + i) * f.channels);
    });
  });
}

template <class T>
void gram_backward(const GramBackwardCall& call) {
  const int64_t frames = call.grid.frames;
  const auto run = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    GramBackwardBuffers<T> buffers(call, arena);
    const Layout<T>& layout = buffers.layout;
    for (int64_t row = begin; row < end; ++row) {
      const RowIndex at(row, frames, layout.rows);
      const bool fresh = row == begin || at.y == 0;
      clear(buffers.gradient, layout.query_row_size());
      if (at.t + 1 < frames)
        buffers.next.add_row(call, call.forward, call.backward, at.b, at.t + 1, at.t, at.y, fresh, buffers.gradient);
      if (at.t > 0)
        buffers.previous.add_row(call, call.backward, call.forward, at.b, at.t - 1, at.t - 1, at.y, fresh,
                                 buffers.gradient);
      write_gradient_row<T>(call, layout, at, buffers.gradient);
    }
  };
  for_each_thread(call.grid.batch * frames * call.grid.rows, call.threads, measure<GramBackwardBuffers<T>>(call), run);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
