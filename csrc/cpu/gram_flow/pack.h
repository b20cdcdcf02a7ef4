// Image rows of features as the products read them: packed rows of floats (layout.h), normalised on the way, and rows of queries
// also where they lie.
#pragma once

#include "../common/pack.h"
#include "norms.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Packs row (b, t, y) of `f`, times `scale` and, unless null, the `norms` of its tokens, with `halo` zero tokens on both sides.
template <class T>
void pack_row(const Tensor& f, const Layout<T>& layout, const T* norms, int64_t b, int64_t t, int64_t y, int64_t halo,
              T scale, T* target) {
  const int64_t cols = layout.cols;
  const int64_t panel_stride = (cols + 2 * halo) * kPanel<T>;
  for (int64_t p = 0; p < layout.panels; ++p) {
    clear(target + p * panel_stride, halo * kPanel<T>);
    clear(target + p * panel_stride + (halo + cols) * kPanel<T>, halo * kPanel<T>);
  }
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t x = 0; x < cols; ++x)
      pack_token<T>(token_address<Storage>(f, b, t, y, x), f.channels, norms ? norms[x] * scale : scale,
                    target + (halo + x) * kPanel<T>, panel_stride);
  });
}

// A row of queries as the products read it. Channel c of token x is
//     data[x * token_stride + c / kPanel * panel_stride + c % kPanel]
// In place, its products are to be multiplied by factors[x]; packed, `factors` is null.
template <class T>
struct QueryRow {
  const T* data;
  int64_t token_stride, panel_stride;
  const T* factors;
};

// Rows of queries, read where they lie if they have the form for it. Keys are always packed: their tiles need distances that are
// known to the compiler, and zeros beside the frame.
template <class T>
class Queries {
 public:
  Queries(const Layout<T>& layout, Arena& arena)
      : layout_(layout),
        packed_(arena.take<T>(layout.query_row_size())),
        factors_(arena.take<T>(layout.cols)) {}

  // Returns row (b, t, y) of `f`, times `weight` and, unless null, the `norms` of its tokens.
  QueryRow<T> row(const Tensor& f, const T* norms, int64_t b, int64_t t, int64_t y, T weight) {
    const bool in_place = whole_panels(f) && (!norms || moderate(norms));
    if (!in_place) {
      pack_row<T>(f, layout_, norms, b, t, y, 0, weight, packed_);
      return {packed_, kPanel<T>, layout_.cols * kPanel<T>, nullptr};
    }
    for (int64_t x = 0; x < layout_.cols; ++x) factors_[x] = norms ? weight * norms[x] : weight;
    return {token_address<T>(f, b, t, y, 0), f.stride[3], kPanel<T>, factors_};
  }

 private:
  // Returns whether no conversion and no channels of 0 are needed. At a distance of pages all tokens of a tile would share a few
  // lines of the first cache.
  static bool whole_panels(const Tensor& f) {
    constexpr DType kOwn = sizeof(T) == sizeof(double) ? DType::float64 : DType::float32;
    return f.dtype == kOwn && f.channels % kPanel<T> == 0 && f.stride[3] * static_cast<int64_t>(sizeof(T)) % 4096 != 0;
  }

  // Returns whether no product of a token that is not yet normalised overflows. False for NaN.
  bool moderate(const T* norms) const {
    bool all = true;
    for (int64_t x = 0; x < layout_.cols; ++x) all &= norms[x] > T(1e-15);
    return all;
  }

  const Layout<T>& layout_;
  T *packed_, *factors_;
};

// The last K image rows of one frame, packed with a halo: the keys in the windows of a row of queries.
template <class T>
class KeyRing {
 public:
  KeyRing(const Layout<T>& layout, Arena& arena)
      : layout_(layout), rows_(arena.take<T>(layout.K * layout.key_row_size())) {}

  // Packs what is missing of rows y-r .. y+r of frame (b, t). Within a frame y ascends from call to call.
  void advance(const Tensor& f, Norms<T>& norms, int64_t source, int64_t b, int64_t t, int64_t y) {
    const int64_t first = y - layout_.radius, end = y + layout_.radius + 1;
    const bool same_frame = b == b_ && t == t_;
    for (int64_t row = same_frame && end_ > first ? end_ : first; row < end; ++row)
      if (row >= 0 && row < layout_.rows)
        pack_row<T>(f, layout_, norms.row(f, source, b, t, row), b, t, row, layout_.radius, T(1), slot(row));
    b_ = b, t_ = t, end_ = end;
  }

  const T* row(int64_t y) const { return rows_ + (y % layout_.K) * layout_.key_row_size(); }

 private:
  T* slot(int64_t y) { return rows_ + (y % layout_.K) * layout_.key_row_size(); }

  const Layout<T>& layout_;
  T* rows_;
  int64_t b_ = -1, t_ = -1, end_ = 0;  // what is packed: the K rows before row end_ of frame (b_, t_)
};

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
