// L2 normalisation of tokens, forward and backward, as many tokens at a time as a vector has lanes.
#pragma once

#include "storage.h"

namespace lgf {
namespace LGF_ISA {
namespace {

constexpr double kNormFloor = 1e-6;

// Returns the reciprocal of a norm whose square overflows, which is rare.
template <class Storage>
__attribute__((noinline)) double reciprocal_norm_in_double(const Storage* token, int64_t channels) {
  double square = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double x = load_partial<double>(token + c, 1)[0];
    square += x * x;
  }
  return 1 / square_root(square);
}

template <class T, class Storage>
LGF_INLINE Vec<T> squares(const Storage* token, int64_t channels) {
  Vec<T> v[kPanelVectors], sums[kPanelVectors] = {};
  for (int64_t c = 0; c < channels; c += kPanel<T>) {
    load_panel<T>(token + c, channels - c, v);
    for (int i = 0; i < kPanelVectors; ++i) sums[i] += v[i] * v[i];
  }
  for (int i = 1; i < kPanelVectors; ++i) sums[0] += sums[i];
  return sums[0];
}

// Returns 1 / max(norm, floor) of `count` <= kLanes<T> tokens, one a lane, so that their roots and quotients overlap. Only
// for a token that holds an infinity may it be 0, whose product with that infinity is NaN.
template <class T, class Storage>
Vec<T> reciprocal_norms(const Storage* token, int64_t token_stride, int64_t count, int64_t channels) {
  Vec<T> sums[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) sums[i] = squares<T>(token + i * token_stride, channels);
  const Vec<T> square = row_sums<T>(sums), floor = broadcast(static_cast<T>(kNormFloor));
  const Vec<T> norm = square_root_lanes<T>(square);
  Vec<T> r = T(1) / (norm > floor ? norm : floor);
  for (int64_t i = 0; i < count; ++i)
    if (__builtin_isinf(square[i])) r[i] = static_cast<T>(reciprocal_norm_in_double(token + i * token_stride, channels));
  return r;
}

// Calls function(first token, tokens) for the tokens of an image row, as many at a time as a vector has lanes.
template <class T, class Function>
LGF_INLINE void for_each_group(int64_t cols, Function&& function) {
  for (int64_t x = 0; x < cols; x += kLanes<T>) function(x, cols - x < kLanes<T> ? cols - x : kLanes<T>);
}

// Returns a vector whose lanes sum to <scale * f, df>, f a token and df its gradient in a packed row.
template <class T, class Storage>
LGF_INLINE Vec<T> products(const Storage* token, int64_t channels, T scale, const T* gradient, int64_t panel_stride) {
  Vec<T> f[kPanelVectors], sums[kPanelVectors] = {};
  for (int64_t c = 0; c < channels; c += kPanel<T>, gradient += panel_stride) {
    load_panel<T>(token + c, channels - c, f);
    for (int v = 0; v < kPanelVectors; ++v) sums[v] += f[v] * scale * load(gradient + v * kLanes<T>);
  }
  for (int v = 1; v < kPanelVectors; ++v) sums[0] += sums[v];
  return sums[0];
}

// Writes the gradient df of `count` <= kLanes<T> tokens, one after the other, from that of the normalised tokens f^ = f * r in a
// packed row, df^. With r = 1 / max(norm, floor) it is df = (df^ - f^ <f^, df^>) * r, without the projection where the floor
// holds.
template <class T, class Storage>
void normalisation_backward(const Storage* token, int64_t token_stride, int64_t count, int64_t channels, Vec<T> r,
                            const T* gradient, int64_t panel_stride, Storage* target) {
  Vec<T> sums[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i)
    sums[i] = products<T>(token + i * token_stride, channels, r[i], gradient + i * kPanel<T>, panel_stride);
  const Vec<T> radial = r >= static_cast<T>(1 / kNormFloor) ? Vec<T>{} : row_sums<T>(sums);
  for (int64_t i = 0; i < count; ++i, token += token_stride, gradient += kPanel<T>, target += channels) {
    const T* df = gradient;
    for (int64_t c = 0; c < channels; c += kPanel<T>, df += panel_stride) {
      Vec<T> f[kPanelVectors];
      load_panel<T>(token + c, channels - c, f);
      for (int v = 0; v < kPanelVectors; ++v) f[v] = (load(df + v * kLanes<T>) - f[v] * r[i] * radial[i]) * r[i];
      store_panel<T>(target + c, channels - c, f);
    }
  }
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
