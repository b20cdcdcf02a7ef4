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

// A row of the coefficients of one direction, in the order of memory.
template <class T>
struct CoefficientRow {
  const T* g;      // (W, K*K)
  const T* scale;  // (W) or null for 1

  T scale_of(int64_t x) const { return scale ? scale[x] : T(1); }
};

// The coefficients of one direction. Rows are numbered through (B, T-1, H).
template <class T>
class Coefficients {
 public:
  Coefficients(const LogitGradient& gradient, const Grid& grid, int64_t positions, bool skip_zeros)
      : g_(static_cast<const T*>(gradient.g)),
        scale_(static_cast<const T*>(gradient.scale)),
        row_size_(grid.cols),
        positions_(positions),
        counted_(g_ && skip_zeros ? gradient.scale : nullptr, grid) {}

  // Whether a row gives anything.
  bool has(int64_t row) const { return g_ && counted_[row]; }

  CoefficientRow<T> operator[](int64_t row) const {
    return {g_ + row * row_size_ * positions_, scale_ ? scale_ + row * row_size_ : nullptr};
  }

 private:
  const T *g_, *scale_;
  int64_t row_size_, positions_;
  CountedRows<T> counted_;
};

template <class T>
struct Directions {
  Coefficients<T> forward, backward;

  Directions(const GramBackwardCall& call, int64_t positions)
      : forward(call.forward, call.grid, positions, call.skip_zeros),
        backward(call.backward, call.grid, positions, call.skip_zeros) {}
};

// What a frame's neighbour gives to its row y: the coefficients of the direction in which the row's tokens are queries, and
// of that in which they are keys, and the number of the pair's first row in either.
template <class T>
struct Side {
  const Coefficients<T>&as_query, &as_key;
  int64_t b, own, frame, pair_row;

  // `step`: 1 for the next frame, -1 for the previous one.
  Side(const Directions<T>& directions, const Grid& grid, int64_t b, int64_t t, int step)
      : as_query(step > 0 ? directions.forward : directions.backward),
        as_key(step > 0 ? directions.backward : directions.forward),
        b(b),
        own(t),
        frame(t + step),
        pair_row((b * (grid.frames - 1) + t - (step < 0)) * grid.rows) {}

  bool exists(const Grid& grid) const { return frame >= 0 && frame < grid.frames; }

  // Calls function(dy, row of the frame) for the rows of the window of row y that give something.
  template <class Function>
  void for_each_window_row(const Layout<T>& layout, int64_t y, Function&& function) const {
    const bool query = as_query.has(pair_row + y);
    for (int dy = 0; dy < layout.K; ++dy) {
      const int64_t other = y + dy - layout.radius;
      if (other >= 0 && other < layout.rows && (query || as_key.has(pair_row + other))) function(dy, other);
    }
  }
};

// The part of the gradient that comes from one neighbouring frame.
template <class T>
class Neighbour {
 public:
  Neighbour(const Layout<T>& layout, Arena& arena)
      : layout_(layout),
        keys_(layout, arena),
        coefficients_(arena.take<T>(layout.positions() * layout.cols)) {}

  // out += contribution of a side to row y. Returns whether there is one.
  bool add_row(const GramBackwardCall& call, Norms<T>& norms, const Side<T>& side, int64_t y, T* out) {
    if (!side.exists(call.grid)) return false;
    if (side.as_query.has(side.pair_row + y)) set_query_side(side.as_query[side.pair_row + y]);
    else clear(coefficients_, layout_.cols * layout_.positions());
    WindowRows<T> rows;
    rows.count = 0;
    side.for_each_window_row(layout_, y, [&](int dy, int64_t other) {
      if (side.as_key.has(side.pair_row + other)) add_key_side(side.as_key[side.pair_row + other], dy);
      rows.features[rows.count] = keys_.row(other);
      rows.coefficients[rows.count++] = coefficients_ + dy * layout_.K;
    });
    if (rows.count == 0) return false;
    keys_.advance(call.features, norms, 0, side.b, side.frame, y);
    const int64_t steps = gather_steps(layout_);
    ahead_[0].begin(call.features, call.grid, side.b, side.frame, y + layout_.radius + 1, steps);
    ahead_[1].begin(call.features, call.grid, side.b, side.own, y + 1, steps);
    gather_row<T>(layout_, rows, out, ahead_);
    return true;
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
  RowAhead ahead_[2];
  T* coefficients_;  // [token][K*K]
};

template <class T>
struct GramBackwardBuffers {
  Layout<T> layout;
  Norms<T> norms;
  Neighbour<T> next, previous;
  T* gradient;  // packed row: gradient of the (normalised) features

  GramBackwardBuffers(const GramBackwardCall& call, Arena& arena)
      : layout(call.grid, call.window.size, call.features.channels),
        norms(layout, call.window, 1, 3, arena),
        next(layout, arena),
        previous(layout, arena),
        gradient(arena.take<T>(layout.query_row_size())) {}
};

// Writes the gradient of row (b, t, y) from a packed row, or zeros without one, to the contiguous output. `norms`: of the row, or
// null where features are not normalised.
template <class T>
void write_gradient_row(const GramBackwardCall& call, const Layout<T>& layout, const RowIndex& at, const T* norms,
                        const T* gradient) {
  const Tensor& f = call.features;
  const int64_t panel_stride = layout.cols * kPanel<T>;
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const int64_t first = ((at.b * layout.grid.frames + at.t) * layout.rows + at.y) * layout.cols;
    Storage* target = static_cast<Storage*>(call.grad) + first * f.channels;
    if (!gradient) return clear(target, layout.cols * f.channels);
    for_each_group<T>(layout.cols, [&](int64_t x, int64_t count) {
      const T* group = gradient + x * kPanel<T>;
      Storage* tokens = target + x * f.channels;
      if (norms)
        return normalisation_backward<T>(token_address<Storage>(f, at.b, at.t, at.y, x), f.stride[3], count, f.channels,
                                         load_some<T>(norms + x, count), group, panel_stride, tokens);
      for (int64_t i = 0; i < count; ++i)
        unpack_token<T>(group + i * kPanel<T>, panel_stride, f.channels, tokens + i * f.channels);
    });
  });
}

template <class T>
void gram_backward(const GramBackwardCall& call) {
  const int64_t frames = call.grid.frames;
  const Layout<T> shape(call.grid, call.window.size, call.features.channels);
  const Directions<T> directions(call, shape.positions());
  const auto run = [&](int64_t begin, int64_t end, char* scratch) {
    Arena arena(scratch);
    GramBackwardBuffers<T> buffers(call, arena);
    buffers.norms.forget();
    const Layout<T>& layout = buffers.layout;
    for (int64_t row = begin; row < end; ++row) {
      const RowIndex at(row, frames, layout.rows);
      const Side<T> next(directions, call.grid, at.b, at.t, 1), previous(directions, call.grid, at.b, at.t, -1);
      clear(buffers.gradient, layout.query_row_size());
      const bool by_next = buffers.next.add_row(call, buffers.norms, next, at.y, buffers.gradient);
      const bool by_previous = buffers.previous.add_row(call, buffers.norms, previous, at.y, buffers.gradient);
      const T* gradient = by_next || by_previous ? buffers.gradient : nullptr;
      const T* norms = gradient ? buffers.norms.row(call.features, 0, at.b, at.t, at.y) : nullptr;
      write_gradient_row<T>(call, layout, at, norms, gradient);
    }
  };
  const auto cost = [&](int64_t row) {
    const RowIndex at(row, frames, shape.rows);
    int64_t rows = 1;
    for (int step = -1; step <= 1; step += 2) {
      const Side<T> side(directions, call.grid, at.b, at.t, step);
      if (side.exists(call.grid)) side.for_each_window_row(shape, at.y, [&](int, int64_t) { ++rows; });
    }
    return rows;
  };
  for_each_thread_by_cost(call.grid.batch * frames * call.grid.rows, call.threads,
                          measure<GramBackwardBuffers<T>>(call), cost, run);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
