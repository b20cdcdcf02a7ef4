// Packing of tokens: features in any storage type and stride become panels of floats, converted and scaled on the way.
// Unpacking is the reverse, without scaling.
#pragma once

#include "normalise.h"

namespace lgf {
namespace LGF_ISA {
namespace {

template <class T, class Storage>
void pack_token(const Storage* token, int64_t channels, T scale, T* target, int64_t panel_stride) {
  Vec<T> v[kPanelVectors];
  for (int64_t c = 0; c < channels; c += kPanel<T>, target += panel_stride) {
    load_panel<T>(token + c, channels - c, v);
    for (int i = 0; i < kPanelVectors; ++i) store<T>(target + i * kLanes<T>, v[i] * scale);
  }
}

template <class T, class Storage>
void unpack_token(const T* packed, int64_t panel_stride, int64_t channels, Storage* target) {
  Vec<T> v[kPanelVectors];
  for (int64_t c = 0; c < channels; c += kPanel<T>, packed += panel_stride) {
    for (int i = 0; i < kPanelVectors; ++i) v[i] = load(packed + i * kLanes<T>);
    store_panel<T>(target + c, channels - c, v);
  }
}

template <class T>
void clear(T* target, int64_t count) {
  __builtin_memset(target, 0, static_cast<std::size_t>(count) * sizeof(T));
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
