// Backward driver: the gradient of sum_{i,d} scale_i g[i, d] z[i, d] with respect to the features.
//
// A token takes part as a query (its own coefficients, neighbours as keys) and as a key (coefficients
// of the <= K*K queries that see it). Written from the token's side both are gathers over the window in
// a neighbouring frame, with coefficients
//
//     query side   c[e, x] = g[y, x, e]                            e: offset from the token
//     key side     c[e, x] = g[y + e_y, x + e_x, -e]
//
// so they are added into one set of planes per neighbouring frame: direction "both" costs no more
// multiplications than one direction, and every gradient element is written once.
#pragma once

#include "forward.h"
#include "gather.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Scaled coefficients of image rows as planes with a zero halo: [dy * K + dx][halo | W | halo].
template <class T>
class CoefficientPlanes {
 public:
  CoefficientPlanes(const Layout<T>& layout, int slots, Arena& arena)
      : layout_(layout),
        slots_(slots),
        pitch_(round_up(layout.plane_pitch + 2 * layout.radius, kLanes<T>)),
        planes_(arena.take<T>(slots * layout.positions() * pitch_)) {}

  // Reads the coefficients of the queries in row y of pair (b, pair).
  void load_row(const LogitGradient& gradient, const Grid& grid, int64_t b, int64_t pair, int64_t y) {
    const int64_t token = ((b * (grid.frames - 1) + pair) * grid.rows + y) * grid.cols;
    T* planes = slot(y);
    clear(planes, layout_.positions() * pitch_);
    transpose<T>(static_cast<const T*>(gradient.g) + token * layout_.positions(), layout_.positions(), layout_.cols,
                 layout_.positions(), planes + layout_.radius, pitch_);
    if (!gradient.scale) return;
    const T* scale = static_cast<const T*>(gradient.scale) + token;
    for (int64_t d = 0; d < layout_.positions(); ++d) {
      T* plane = planes + d * pitch_ + layout_.radius;
      for (int64_t x = 0; x < layout_.cols; ++x) plane[x] *= scale[x];
    }
  }

  // Rows y-r .. y+r, as KeyRing::advance.
  void advance(const LogitGradient& gradient, const Grid& grid, int64_t b, int64_t pair, int64_t y, bool fresh) {
    const int64_t last = y + layout_.radius;
    for (int64_t row = fresh ? y - layout_.radius : last; row <= last; ++row)
      if (row >= 0 && row < layout_.rows) load_row(gradient, grid, b, pair, row);
  }

  // The coefficients of window position d of row y, from column x on (x may lie in the halo).
  const T* at(int64_t y, int64_t d, int64_t x) const {
    return planes_ + ((y % slots_) * layout_.positions() + d) * pitch_ + layout_.radius + x;
  }

 private:
  T* slot(int64_t y) { return planes_ + (y % slots_) * layout_.positions() * pitch_; }

  const Layout<T>& layout_;
  int slots_;
  int64_t pitch_;
  T* planes_;
};

// The part of the gradient that comes from one neighbouring frame.
template <class T>
class Neighbour {
 public:
  Neighbour(const Layout<T>& layout, Arena& arena)
      : layout_(layout),
        keys_(layout, arena),
        query_side_(layout, 1, arena),
        key_side_(layout, layout.K, arena),
        planes_(arena.take<T>(layout.planes_size())) {}

  // out += contribution of `frame`, reached through `pair`, to row y. `as_query`: coefficients of the
  // direction in which the row's tokens are queries; `as_key`: in which they are keys.
  void add_row(const GramBackwardCall& call, const LogitGradient& as_query, const LogitGradient& as_key, int64_t b,
               int64_t frame, int64_t pair, int64_t y, bool fresh, T* out) {
    keys_.advance(call.features, call.window.cosine, b, frame, y, fresh);
    if (as_query.g) query_side_.load_row(as_query, call.grid, b, pair, y);
    if (as_key.g) key_side_.advance(as_key, call.grid, b, pair, y, fresh);
    WindowRows<T> rows;
    rows.count = 0;
    for (int dy = 0; dy < layout_.K; ++dy) {
      const int64_t key_y = y + dy - layout_.radius;
      if (key_y < 0 || key_y >= layout_.rows) continue;
      T* planes = planes_ + dy * layout_.K * layout_.plane_pitch;
      combine(as_query.g != nullptr, as_key.g != nullptr, y, dy, planes);
      rows.features[rows.count] = keys_.row(key_y);
      rows.coefficients[rows.count++] = planes;
    }
    gather_row<T>(layout_, rows, out);
  }

 private:
  // The K coefficient planes of one dy: query side plus key side.
  void combine(bool query_side, bool key_side, int64_t y, int dy, T* planes) const {
    const int64_t last = layout_.positions() - 1;  // position -e of position e is last - e
    for (int dx = 0; dx < layout_.K; ++dx, planes += layout_.plane_pitch) {
      const int64_t e = dy * layout_.K + dx, e_y = dy - layout_.radius, e_x = dx - layout_.radius;
      for (int64_t x = 0; x < layout_.plane_pitch; x += kLanes<T>) {
        Vec<T> c{};
        if (query_side) c += load(query_side_.at(y, e, x));
        if (key_side) c += load(key_side_.at(y + e_y, last - e, x + e_x));
        store(planes + x, c);
      }
    }
  }

  const Layout<T>& layout_;
  KeyRing<T> keys_;
  CoefficientPlanes<T> query_side_, key_side_;
  T* planes_;
};

template <class T>
struct GramBackwardBuffers {
  Layout<T> layout;
  Neighbour<T> next, previous;
  T* gradient;    // packed row: gradient of the (normalised) features
  T* normalised;  // packed row
  T* reciprocal_norms;

  GramBackwardBuffers(const GramBackwardCall& call, Arena& arena)
      : layout(call.grid, call.window.size, call.features.channels),
        next(layout, arena),
        previous(layout, arena),
        gradient(arena.take<T>(layout.query_row_size())),
        normalised(arena.take<T>(call.window.cosine ? layout.query_row_size() : 0)),
        reciprocal_norms(arena.take<T>(layout.cols)) {}
};

// Through f^ = f * r, r = 1 / max(norm, floor): df = (df^ - f^ <f^, df^>) * r, without the projection
// where the floor holds.
template <class T>
void normalisation_backward(const Layout<T>& layout, const T* normalised, const T* reciprocal_norms, T* gradient) {
  const int64_t panel_stride = layout.cols * kPanel<T>;
  for (int64_t x = 0; x < layout.cols; ++x) {
    const T* f = normalised + x * kPanel<T>;
    T* df = gradient + x * kPanel<T>;
    const T r = reciprocal_norms[x];
    Vec<T> products{};
    for (int64_t p = 0; p < layout.panels; ++p)
      for (int v = 0; v < kPanel<T>; v += kLanes<T>)
        products += load(f + p * panel_stride + v) * load(df + p * panel_stride + v);
    const bool floored = r >= static_cast<T>(1 / kNormFloor);
    const T radial = floored ? T(0) : sum_of_lanes<T>(products);
    for (int64_t p = 0; p < layout.panels; ++p)
      for (int v = 0; v < kPanel<T>; v += kLanes<T>) {
        const int64_t at = p * panel_stride + v;
        store(df + at, (load(df + at) - load(f + at) * radial) * r);
      }
  }
}

// Packed row -> contiguous (W, C) in the storage type.
template <class T>
void unpack_row(const Layout<T>& layout, const T* packed, DType dtype, int64_t channels, void* grad, int64_t token) {
  with_storage_type(dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    Storage* target = static_cast<Storage*>(grad) + token * channels;
    for (int64_t x = 0; x < layout.cols; ++x, target += channels)
      for (int64_t c = 0; c < channels; c += kLanes<T>) {
        const Vec<T> value = load(packed + (c / kPanel<T> * layout.cols + x) * kPanel<T> + c % kPanel<T>);
        if (channels - c >= kLanes<T>) Convert<T, Storage>::to(target + c, value);
        else store_partial<T>(target + c, value, channels - c);
      }
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
      if (call.window.cosine) {
        pack_row<T>(call.features, layout, true, at.b, at.t, at.y, 0, T(1), buffers.normalised,
                    buffers.reciprocal_norms);
        normalisation_backward<T>(layout, buffers.normalised, buffers.reciprocal_norms, buffers.gradient);
      }
      unpack_row<T>(layout, buffers.gradient, call.features.dtype, call.features.channels, call.grad,
                    row * layout.cols);
    }
  };
  for_each_thread(call.grid.batch * frames * call.grid.rows, call.threads, measure<GramBackwardBuffers<T>>(call), run);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
