// Divergence of a token and its gradient by the student's logits, from the logits of student and teacher.
// With P = softmax(zT / tau), Q = softmax(zS / tau) and u = log P - log Q,
//
//     KL = sum_d P u = sum_d (P u + Q - P)[d]              dKL / dzS = (Q - P) / tau, zero outside the frame
//     L2 = mean_d (zS - zT)^2                              dL2 / dzS = 2 (zS - zT) / count
//
// The added Q - P sums to 0 and makes every term P (e^-u - 1 + u) >= 0: near convergence, where u is small, its series
// replaces a sum of numbers that cancel.
//
// A divergence that is not finite becomes NaN, and so does the gradient of its token: infinities in the features must not
// result in finite numbers.
#pragma once

#include "../common/tensor.h"

namespace lgf {
namespace cuda {

struct Divergence {
  bool exclude_boundary;  // outside positions leave the softmax; otherwise they stay, with logit 0
  bool squared_error;
  double inverse_temperature;
};

// The K*K logits of a token lie in shared memory, divided between neighbouring lanes, which use no other token's.
constexpr int kLanesPerToken = 2;

template <class T>
LGF_DEVICE T sum_of_lanes(T v) {
  return v + shuffle_xor(v, 1);
}

// Calls function(slot, counted, inside) for this lane's positions of the window around (y, x). `counted`: in the
// divergence; `inside`: in the frame, and therefore with a gradient.
template <class Function>
LGF_DEVICE void for_each_position(const Grid& grid, int K, bool exclude, int y, int x, Function&& function) {
  for (int slot = thread_index() % kLanesPerToken; slot < K * K; slot += kLanesPerToken) {
    const bool inside = in_frame(grid, y + slot / K - K / 2, x + slot % K - K / 2);
    function(slot, inside || !exclude, inside);
  }
}

// P u + Q - P.
template <class T>
LGF_DEVICE T kl_term(T p, T q, T u) {
  // e^-u - 1 + u = u^2 (1/2 - u/6 + u^2/24 - ...), up to where the terms left out reach the precision of T.
  constexpr T kSmall = sizeof(T) == sizeof(float) ? T(0.25) : T(0.005);
  if (!(u < kSmall && u > -kSmall)) return p * u + (q - p);
  T series = u * T(-1.0 / 5040) + T(1.0 / 720);
  series = series * u + T(-1.0 / 120);
  series = series * u + T(1.0 / 24);
  series = series * u + T(-1.0 / 6);
  series = series * u + T(0.5);
  return p * u * u * series;
}

// Returns the KL divergence. The student's logits become the gradient, without NaN for a divergence that is not finite.
template <class T>
LGF_DEVICE T kl_divergence(const Grid& grid, int K, const Divergence& d, int y, int x, const T* teacher, T* student) {
  const T inverse_temperature = static_cast<T>(d.inverse_temperature);
  T max_t = -INFINITY, max_s = -INFINITY;
  for_each_position(grid, K, d.exclude_boundary, y, x, [&](int slot, bool counted, bool) {
    if (counted) max_t = fmax(max_t, teacher[slot]), max_s = fmax(max_s, student[slot]);
  });
  max_t = fmax(max_t, shuffle_xor(max_t, 1));
  max_s = fmax(max_s, shuffle_xor(max_s, 1));

  T sum_t = 0, sum_s = 0;
  for_each_position(grid, K, d.exclude_boundary, y, x, [&](int slot, bool counted, bool) {
    if (!counted) return;
    sum_t += exp((teacher[slot] - max_t) * inverse_temperature);
    sum_s += exp((student[slot] - max_s) * inverse_temperature);
  });
  sum_t = sum_of_lanes(sum_t);
  sum_s = sum_of_lanes(sum_s);

  const T normalise_t = T(1) / sum_t, normalise_s = T(1) / sum_s;
  const T log_ratio = log(sum_s * normalise_t);
  T kl = 0;
  for_each_position(grid, K, d.exclude_boundary, y, x, [&](int slot, bool counted, bool inside) {
    const T t = (teacher[slot] - max_t) * inverse_temperature, s = (student[slot] - max_s) * inverse_temperature;
    const T p = exp(t) * normalise_t, q = exp(s) * normalise_s;
    if (counted) kl += kl_term(p, q, t - s + log_ratio);
    student[slot] = inside ? (q - p) * inverse_temperature : T(0);
  });
  return sum_of_lanes(kl);
}

// Returns the mean squared error. Outside positions are 0 in both logits.
template <class T>
LGF_DEVICE T squared_error(const Grid& grid, int K, const Divergence& d, int y, int x, const T* teacher, T* student) {
  T sum = 0, count = 0;
  for_each_position(grid, K, d.exclude_boundary, y, x, [&](int slot, bool counted, bool) {
    const T difference = student[slot] - teacher[slot];
    sum += difference * difference;
    count += counted ? T(1) : T(0);
  });
  sum = sum_of_lanes(sum);
  count = sum_of_lanes(count);
  const T scale = T(2) / count;
  for_each_position(grid, K, d.exclude_boundary, y, x, [&](int slot, bool, bool inside) {
    student[slot] = inside ? (student[slot] - teacher[slot]) * scale : T(0);
  });
  return sum / count;
}

// Returns the divergence of the token at (y, x) in all its lanes. Its student's logits become the gradient.
template <class T>
LGF_DEVICE T divergence(const Grid& grid, int K, const Divergence& d, int y, int x, const T* teacher, T* student) {
  const T value = d.squared_error ? squared_error(grid, K, d, y, x, teacher, student)
                                  : kl_divergence(grid, K, d, y, x, teacher, student);
  const T poison = value - value;  // NaN where the value is infinite or NaN, else 0
  if (poison != T(0))
    for_each_position(grid, K, true, y, x, [&](int slot, bool, bool inside) {
      if (inside) student[slot] = poison;
    });
  return value + poison;
}

}  // namespace cuda
}  // namespace lgf
