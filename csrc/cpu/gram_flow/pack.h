// Packing: one image row of features becomes a packed row of floats (layout.h), normalised on the way.
#pragma once

#include "../common/pack.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Packs row (b, t, y) of `f`, times `scale`, with `halo` zero tokens on both sides.
template <class T>
void pack_row(const Tensor& f, const Layout<T>& layout, bool cosine, int64_t b, int64_t t, int64_t y, int64_t halo,
              T scale, T* target) {
  const int64_t cols = layout.cols;
  const int64_t panel_stride = (cols + 2 * halo) * kPanel<T>;
  for (int64_t p = 0; p < layout.panels; ++p) {
    clear(target + p * panel_stride, halo * kPanel<T>);
    clear(target + p * panel_stride + (halo + cols) * kPanel<T>, halo * kPanel<T>);
  }
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for_each_group<T>(cols, [&](int64_t x, int64_t count) {
      const Storage* token = token_address<Storage>(f, b, t, y, x);
      const Vec<T> r = cosine ? reciprocal_norms<T>(token, f.stride[3], count, f.channels) : broadcast(T(1));
      for (int64_t i = 0; i < count; ++i)
        pack_token<T>(token + i * f.stride[3], f.channels, r[i] * scale, target + (halo + x + i) * kPanel<T>,
                      panel_stride);
    });
  });
}

// The last K image rows of one frame, packed with a halo: the keys in the windows of a row of queries.
template <class T>
class KeyRing {
 public:
  KeyRing(const Layout<T>& layout, Arena& arena)
      : layout_(layout), rows_(arena.take<T>(layout.K * layout.key_row_size())) {}

  // Packs what is missing of rows y-r .. y+r of frame (b, t). Within a frame y ascends from call to call.
  void advance(const Tensor& f, bool cosine, int64_t b, int64_t t, int64_t y) {
    const int64_t first = y - layout_.radius, end = y + layout_.radius + 1;
    const bool same_frame = b == b_ && t == t_;
    for (int64_t row = same_frame && end_ > first ? end_ : first; row < end; ++row)
      if (row >= 0 && row < layout_.rows)
        pack_row<T>(f, layout_, cosine, b, t, row, layout_.radius, T(1), slot(row));
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
