// Packing: one image row of features, in any storage type and stride, becomes a packed row of floats
// (layout.h), converted, normalised and scaled on the way. Unpacking is the reverse, without scaling.
#pragma once

#include "layout.h"

namespace lgf {
namespace LGF_ISA {
namespace {

constexpr double kNormFloor = 1e-6;

// One token's address: frame row (b, t, y), column x.
template <class Storage>
LGF_INLINE const Storage* token_address(const Tensor& f, int64_t b, int64_t t, int64_t y, int64_t x) {
  return static_cast<const Storage*>(f.data) + b * f.stride[0] + t * f.stride[1] + y * f.stride[2] + x * f.stride[3];
}

// kPanel channels from `source`, of which `count` exist; the rest are 0.
template <class T, class Storage>
LGF_INLINE void load_panel(const Storage* source, int64_t count, Vec<T>* v) {
  if (count >= kPanel<T>) {
    for (int i = 0; i < kPanelVectors; ++i) v[i] = Convert<T, Storage>::from(source + i * kLanes<T>);
    return;
  }
  for (int i = 0; i < kPanelVectors; ++i) {
    const int64_t left = count - i * kLanes<T>;
    v[i] = left > 0 ? load_partial<T>(source + i * kLanes<T>, left < kLanes<T> ? left : kLanes<T>) : Vec<T>{};
  }
}

// For the rare norm whose square overflows.
template <class Storage>
__attribute__((noinline)) double reciprocal_norm_in_double(const Storage* token, int64_t channels) {
  double square = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double x = load_partial<double>(token + c, 1)[0];
    square += x * x;
  }
  return 1 / square_root(square);
}

// 1 / max(norm, floor). Only a token that holds an infinity may end with 0, whose product with that
// infinity is NaN.
template <class T, class Storage>
T reciprocal_norm(const Storage* token, int64_t channels) {
  Vec<T> v[kPanelVectors], sums[kPanelVectors] = {};
  for (int64_t c = 0; c < channels; c += kPanel<T>) {
    load_panel<T>(token + c, channels - c, v);
    for (int i = 0; i < kPanelVectors; ++i) sums[i] += v[i] * v[i];
  }
  for (int i = 1; i < kPanelVectors; ++i) sums[0] += sums[i];
  const T square = sum_of_lanes<T>(sums[0]);
  if (__builtin_isinf(square)) return static_cast<T>(reciprocal_norm_in_double(token, channels));
  const T norm = square_root(square), floor = static_cast<T>(kNormFloor);
  return 1 / (norm > floor ? norm : floor);
}

template <class T, class Storage>
void pack_token(const Storage* token, int64_t channels, T scale, T* target, int64_t panel_stride) {
  Vec<T> v[kPanelVectors];
  for (int64_t c = 0; c < channels; c += kPanel<T>, target += panel_stride) {
    load_panel<T>(token + c, channels - c, v);
    for (int i = 0; i < kPanelVectors; ++i) store<T>(target + i * kLanes<T>, v[i] * scale);
  }
}

template <class T>
void clear(T* target, int64_t count) {
  __builtin_memset(target, 0, static_cast<std::size_t>(count) * sizeof(T));
}

// Reading features from memory would otherwise cost more than packing them. The address may lie past the
// end of the row, or of the tensor: it is a hint, not an access.
constexpr int64_t kPrefetchTokens = 12;

template <class Storage>
LGF_INLINE void prefetch_token(const Storage* token, int64_t token_stride, int64_t channels) {
  const std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(token) +
                               static_cast<std::uintptr_t>(kPrefetchTokens * token_stride) * sizeof(Storage);
  for (std::uintptr_t byte = 0; byte < static_cast<std::uintptr_t>(channels) * sizeof(Storage); byte += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(ahead + byte));
}

// Row (b, t, y) of `f`, times `scale`, with `halo` zero tokens on both sides. `reciprocal_norms` (W
// values) is filled for cosine similarity unless null.
template <class T>
void pack_row(const Tensor& f, const Layout<T>& layout, bool cosine, int64_t b, int64_t t, int64_t y, int64_t halo,
              T scale, T* target, T* reciprocal_norms) {
  const int64_t cols = layout.cols;
  const int64_t panel_stride = (cols + 2 * halo) * kPanel<T>;
  for (int64_t p = 0; p < layout.panels; ++p) {
    clear(target + p * panel_stride, halo * kPanel<T>);
    clear(target + p * panel_stride + (halo + cols) * kPanel<T>, halo * kPanel<T>);
  }
  with_storage_type(f.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t x = 0; x < cols; ++x) {
      const Storage* token = token_address<Storage>(f, b, t, y, x);
      prefetch_token(token, f.stride[3], f.channels);
      const T r = cosine ? reciprocal_norm<T>(token, f.channels) : T(1);
      if (reciprocal_norms) reciprocal_norms[x] = r;
      pack_token<T>(token, f.channels, r * scale, target + (halo + x) * kPanel<T>, panel_stride);
    }
  });
}

// The last K image rows of one frame, packed with a halo: what the window of a row of queries sees.
template <class T>
class KeyRing {
 public:
  KeyRing(const Layout<T>& layout, Arena& arena)
      : layout_(layout), rows_(arena.take<T>(layout.K * layout.key_row_size())) {}

  // Makes rows y-r .. y+r available. `fresh`: nothing of this frame is packed yet.
  void advance(const Tensor& f, bool cosine, int64_t b, int64_t t, int64_t y, bool fresh) {
    const int64_t last = y + layout_.radius;
    for (int64_t row = fresh ? y - layout_.radius : last; row <= last; ++row)
      if (row >= 0 && row < layout_.rows)
        pack_row<T>(f, layout_, cosine, b, t, row, layout_.radius, T(1), slot(row), nullptr);
  }

  const T* row(int64_t y) const { return rows_ + (y % layout_.K) * layout_.key_row_size(); }

 private:
  T* slot(int64_t y) { return rows_ + (y % layout_.K) * layout_.key_row_size(); }

  const Layout<T>& layout_;
  T* rows_;
};

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
