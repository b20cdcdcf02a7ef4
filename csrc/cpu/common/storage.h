// Access to a token of a tensor in any storage type and stride, a panel of channels at a time.
#pragma once

#include "panels.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Returns the address of a token: frame row (b, t, y), column x.
template <class Storage>
LGF_INLINE const Storage* token_address(const Tensor& f, int64_t b, int64_t t, int64_t y, int64_t x) {
  return static_cast<const Storage*>(f.data) + b * f.stride[0] + t * f.stride[1] + y * f.stride[2] + x * f.stride[3];
}

// Loads a vector from `source`, of which `count`, any number, exist; the rest are 0.
template <class T, class Storage>
LGF_INLINE Vec<T> load_some(const Storage* source, int64_t count) {
  if (count >= kLanes<T>) return Convert<T, Storage>::from(source);
  return count > 0 ? load_partial<T>(source, count) : Vec<T>{};
}

// Stores the elements that exist.
template <class T, class Storage>
LGF_INLINE void store_some(Storage* target, Vec<T> value, int64_t count) {
  if (count >= kLanes<T>) Convert<T, Storage>::to(target, value);
  else if (count > 0) store_partial<T>(target, value, count);
}

// Loads kPanel channels from `source`, of which `count` exist; the rest are 0.
template <class T, class Storage>
LGF_INLINE void load_panel(const Storage* source, int64_t count, Vec<T>* v) {
  if (count >= kPanel<T>) {
    for (int i = 0; i < kPanelVectors; ++i) v[i] = Convert<T, Storage>::from(source + i * kLanes<T>);
    return;
  }
  for (int i = 0; i < kPanelVectors; ++i) v[i] = load_some<T>(source + i * kLanes<T>, count - i * kLanes<T>);
}

// Stores the channels that exist.
template <class T, class Storage>
LGF_INLINE void store_panel(Storage* target, int64_t count, const Vec<T>* v) {
  for (int i = 0; i < kPanelVectors; ++i) store_some<T>(target + i * kLanes<T>, v[i], count - i * kLanes<T>);
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
