// Divergence of tokens and its gradient, from the logits of student and teacher, tokens along the lanes.
// With P = softmax(zT / tau), Q = softmax(zS / tau) and u = log P - log Q,
//
//     KL = sum_d P u = sum_d (P u + Q - P)[d]          dKL / dzS = (Q - P) / tau, zero outside the frame
//
// The added Q - P sums to 0 and makes every term P (e^-u - 1 + u) >= 0: near convergence, where u is small, its series
// replaces a sum of numbers that cancel.
//
// A divergence that is not finite becomes NaN, and so does the gradient of its token: infinities in the features must not
// result in finite numbers.
#pragma once

#include "layout.h"

namespace lgf {
namespace LGF_ISA {
namespace {

// Lanes whose column x + lane lies in the frame.
template <class T>
LGF_INLINE Mask<T> inside_columns(int64_t x, int64_t cols) {
  using Element = typename MaskElement<T>::type;
  Mask<T> column{};
  for (int i = 0; i < kLanes<T>; ++i) column[i] = static_cast<Element>(x + i);
  return (column >= 0) & (column < static_cast<Element>(cols));
}

// Calls function(offset of the lanes in the planes, counted, inside) for the window positions of the
// tokens from (y, x) on. `counted`: takes part in the divergence; `inside`: carries a gradient.
template <class T, class Function>
LGF_INLINE void for_each_position(const Layout<T>& layout, int64_t y, int64_t x, bool exclude, Function&& function) {
  for (int dy = 0; dy < layout.K; ++dy) {
    const int64_t key_y = y + dy - layout.radius;
    const bool row_inside = key_y >= 0 && key_y < layout.rows;
    if (exclude && !row_inside) continue;
    for (int dx = 0; dx < layout.K; ++dx) {
      const Mask<T> inside = row_inside ? inside_columns<T>(x + dx - layout.radius, layout.cols) : Mask<T>{};
      function((dy * layout.K + dx) * layout.plane_pitch + x, exclude ? inside : ~Mask<T>{}, inside);
    }
  }
}

// Returns NaN where v is infinite or NaN, else 0.
template <class T>
LGF_INLINE Vec<T> poison(Vec<T> v) {
  return v - v;
}

// Sets the gradient of the tokens whose divergence is NaN to NaN, also outside the frame, where only these tokens use it.
template <class T>
void poison_gradient(const Layout<T>& layout, int64_t y, int64_t x, Vec<T> divergence, T* gradient) {
  if (sum_of_lanes<T>(poison<T>(divergence)) == 0) return;
  for_each_position(layout, y, x, true, [&](int64_t at, Mask<T>, Mask<T>) {
    store(gradient + at, load(gradient + at) + poison<T>(divergence));
  });
}

// P u + Q - P.
template <class T>
LGF_INLINE Vec<T> kl_term(Vec<T> p, Vec<T> q, Vec<T> u) {
  // e^-u - 1 + u = u^2 (1/2 - u/6 + u^2/24 - ...), up to where the terms left out reach the precision of T.
  constexpr T kSmall = sizeof(T) == sizeof(float) ? T(0.25) : T(0.005);
  Vec<T> series = u * T(-1.0 / 5040) + T(1.0 / 720);
  series = series * u + T(-1.0 / 120);
  series = series * u + T(1.0 / 24);
  series = series * u + T(-1.0 / 6);
  series = series * u + T(0.5);
  const Mask<T> small = (u < kSmall) & (u > -kSmall);
  return small ? p * u * u * series : p * u + (q - p);
}

// One vector of tokens. The planes hold logits and are overwritten; `student` ends as the gradient.
template <class T>
Vec<T> kl_divergence(const Layout<T>& layout, int64_t y, int64_t x, bool exclude, T inverse_temperature, bool gradient,
                     T* teacher, T* student) {
  const Vec<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inf()));
  Vec<T> max_t = lowest, max_s = lowest;
  for_each_position(layout, y, x, exclude, [&](int64_t at, Mask<T> counted, Mask<T>) {
    const Vec<T> t = load(teacher + at), s = load(student + at);
    max_t = (counted & (t > max_t)) ? t : max_t;
    max_s = (counted & (s > max_s)) ? s : max_s;
  });
  Vec<T> differences[kMaxWindow * kMaxWindow];
  Vec<T>* difference = differences;
  Vec<T> sum_t{}, sum_s{};
  for_each_position(layout, y, x, exclude, [&](int64_t at, Mask<T> counted, Mask<T>) {
    const Vec<T> t = (load(teacher + at) - max_t) * inverse_temperature;
    const Vec<T> s = (load(student + at) - max_s) * inverse_temperature;
    const Vec<T> exp_t = counted ? exp_nonpositive(t) : Vec<T>{};
    const Vec<T> exp_s = counted ? exp_nonpositive(s) : Vec<T>{};
    sum_t += exp_t;
    sum_s += exp_s;
    store(teacher + at, exp_t);
    store(student + at, exp_s);
    *difference++ = counted ? t - s : Vec<T>{};
  });
  const Vec<T> normalise_t = T(1) / sum_t, normalise_s = T(1) / sum_s;
  const Vec<T> log_ratio = logarithm_lanes<T>(sum_s * normalise_t);
  difference = differences;
  Vec<T> kl{};
  for_each_position(layout, y, x, exclude, [&](int64_t at, Mask<T>, Mask<T> inside) {
    const Vec<T> p = load(teacher + at) * normalise_t, q = load(student + at) * normalise_s;
    const Vec<T> u = *difference++ + log_ratio;
    kl += kl_term<T>(p, q, u);
    if (gradient) store(student + at, inside ? (q - p) * inverse_temperature : Vec<T>{});
  });
  kl += poison<T>(kl);
  if (gradient) poison_gradient<T>(layout, y, x, kl, student);
  return kl;
}

// Returns the mean over the counted positions of (zS - zT)^2; outside positions are 0 in both.
template <class T>
Vec<T> squared_error(const Layout<T>& layout, int64_t y, int64_t x, bool exclude, bool gradient, const T* teacher,
                     T* student) {
  Vec<T> sum{}, count{};
  for_each_position(layout, y, x, exclude, [&](int64_t at, Mask<T> counted, Mask<T>) {
    const Vec<T> difference = load(student + at) - load(teacher + at);
    sum += difference * difference;
    count += counted ? broadcast(T(1)) : Vec<T>{};
  });
  Vec<T> mean = sum / count;
  mean += poison<T>(mean);
  if (gradient) {
    const Vec<T> scale = T(2) / count;
    for_each_position(layout, y, x, exclude, [&](int64_t at, Mask<T>, Mask<T> inside) {
      const Vec<T> g = (load(student + at) - load(teacher + at)) * scale;
      store(student + at, inside ? g : Vec<T>{});
    });
    poison_gradient<T>(layout, y, x, mean, student);
  }
  return mean;
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
