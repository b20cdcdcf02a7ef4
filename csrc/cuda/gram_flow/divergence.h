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

#include <type_traits>

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

// One of a lane's positions of a window. `inside` the frame: with a gradient. `exists`: of an odd number of positions, one lane
// has one less than the other.
struct Position {
  int number, slot;
  bool inside, exists;
};

// Returns how many of K places in a row around a centre lie before `end`.
LGF_DEVICE int places_before(int end, int centre, int K) {
  const int places = end - (centre - K / 2);
  return places < 0 ? 0 : places > K ? K : places;
}

// Returns the number of positions of the window around (y, x) in the frame.
LGF_DEVICE int places_inside(const Grid& grid, int K, int y, int x) {
  const int rows = places_before(grid.rows, y, K) - places_before(0, y, K);
  return rows * (places_before(grid.cols, x, K) - places_before(0, x, K));
}

// This lane's positions of the window around (y, x). Those of a window known to the compiler are unrolled, and which of them are
// inside is a mask of bits, made once for a token. `kWindow` 0: any window of K.
template <int kWindow>
class Positions {
 public:
  static constexpr int kCount = (kWindow * kWindow + kLanesPerToken - 1) / kLanesPerToken;

  LGF_DEVICE Positions(const Grid& grid, int, int y, int x) : lane_(thread_index() % kLanesPerToken) {
    const std::uint64_t columns = inside(grid.cols, x, 1), rows = inside(grid.rows, y, kWindow);
    constexpr std::uint64_t kFirstOfEachRow = ((std::uint64_t(1) << kWindow * kWindow) - 1) / ((1 << kWindow) - 1);
    inside_ = (columns * kFirstOfEachRow & rows) >> lane_;
  }

  template <class Function>
  LGF_DEVICE void for_each(Function&& function) const {
    LGF_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int slot = i * kLanesPerToken + lane_;
      const bool always = (i + 1) * kLanesPerToken <= kWindow * kWindow;
      function(Position{i, slot, (inside_ >> i * kLanesPerToken & 1) != 0, always || slot < kWindow * kWindow});
    }
  }

 private:
  static_assert(kWindow * kWindow < 64, "a mask of 64 bits");

  // Returns the slots inside along one dimension, in which they are `step` apart.
  static LGF_DEVICE std::uint64_t inside(int size, int centre, int step) {
    const auto slots = [&](int places) { return (std::uint64_t(1) << places * step) - 1; };
    return slots(places_before(size, centre, kWindow)) & ~slots(places_before(0, centre, kWindow));
  }

  int lane_;
  std::uint64_t inside_;  // its lowest bit is that of this lane's first position
};

template <>
class Positions<0> {
 public:
  LGF_DEVICE Positions(const Grid& grid, int K, int y, int x) : grid_(grid), K_(K), y_(y - K / 2), x_(x - K / 2) {}

  template <class Function>
  LGF_DEVICE void for_each(Function&& function) const {
    for (int slot = thread_index() % kLanesPerToken; slot < K_ * K_; slot += kLanesPerToken)
      function(Position{slot / kLanesPerToken, slot, in_frame(grid_, y_ + slot / K_, x_ + slot % K_), true});
  }

 private:
  const Grid& grid_;
  int K_, y_, x_;
};

// A number for each of a lane's positions, which a function computes: once, into registers, if the window is known to the
// compiler; at each use otherwise.
template <int kWindow, class Function>
class Numbers {
 public:
  using T = std::invoke_result_t<Function, const Position&>;

  LGF_DEVICE Numbers(const Positions<kWindow>& positions, const Function& function) {
    positions.for_each([&](const Position& at) { held_[at.number] = function(at); });
  }
  LGF_DEVICE T operator()(const Position& at) const { return held_[at.number]; }

 private:
  T held_[Positions<kWindow>::kCount];
};

template <class Function>
class Numbers<0, Function> {
 public:
  LGF_DEVICE Numbers(const Positions<0>&, const Function& function) : function_(function) {}
  LGF_DEVICE auto operator()(const Position& at) const { return function_(at); }

 private:
  Function function_;
};

template <int kWindow, class Function>
LGF_DEVICE Numbers<kWindow, Function> numbers(const Positions<kWindow>& positions, const Function& function) {
  return {positions, function};
}

// P u + Q - P.
template <class T>
LGF_DEVICE T kl_term(T p, T q, T u) {
  // e^-u - 1 + u = u^2 (1/2 - u/6 + u^2/24 - ...), up to where the terms left out reach the precision of T.
  constexpr T kSmall = sizeof(T) == sizeof(float) ? T(0.25) : T(0.005);
  const T large = p * u + (q - p);  // both, because a branch costs more
  T series = u * T(-1.0 / 5040) + T(1.0 / 720);
  series = series * u + T(-1.0 / 120);
  series = series * u + T(1.0 / 24);
  series = series * u + T(-1.0 / 6);
  series = series * u + T(0.5);
  const T small = p * u * u * series;
  return fabs(u) < kSmall ? small : large;
}

// Returns the KL divergence. The student's logits become the gradient, without NaN for a divergence that is not finite. Of the
// `outside` positions that are counted and lie outside the frame, where both logits are 0, one is computed for all.
template <class T, int kWindow>
LGF_DEVICE T kl_divergence(const Positions<kWindow>& positions, int outside, double inverse_temperature, const T* teacher,
                           T* student) {
  struct Pair {
    T t, s;
  };
  const auto logits = numbers(positions, [&](const Position& at) {
    return at.inside ? Pair{teacher[at.slot], student[at.slot]} : Pair{T(-INFINITY), T(-INFINITY)};
  });
  Pair most = outside ? Pair{0, 0} : Pair{T(-INFINITY), T(-INFINITY)};
  positions.for_each([&](const Position& at) { most = {fmax(most.t, logits(at).t), fmax(most.s, logits(at).s)}; });
  most = {fmax(most.t, shuffle_xor(most.t, 1)), fmax(most.s, shuffle_xor(most.s, 1))};

  // Differences from the largest to the base of 2, and what they are exponents of.
  struct Exponentials {
    T t, s, difference;
  };
  constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;
  const T scale = static_cast<T>(inverse_temperature * kLog2e);
  const auto exponentials = [&](const Pair& z) {
    const T t = (z.t - most.t) * scale, s = (z.s - most.s) * scale;
    return Exponentials{power_of_two(t), power_of_two(s), t - s};
  };
  const auto of_logits = numbers(positions, [&](const Position& at) { return exponentials(logits(at)); });
  const Exponentials of_zeros = exponentials({0, 0});
  T sum_t = 0, sum_s = 0;
  positions.for_each([&](const Position& at) { sum_t += of_logits(at).t, sum_s += of_logits(at).s; });
  sum_t = sum_of_lanes(sum_t) + (outside ? outside * of_zeros.t : T(0));
  sum_s = sum_of_lanes(sum_s) + (outside ? outside * of_zeros.s : T(0));

  // P, Q and therefore the divergence are times 1 / tau: as the gradient has it.
  const T steepness = static_cast<T>(inverse_temperature);
  const T normalise_t = steepness / sum_t, normalise_s = steepness / sum_s;
  const T log_ratio = log(sum_s / sum_t);
  const auto divided = [&](const Exponentials& e) {
    return Pair{rounded_product(e.t, normalise_t), rounded_product(e.s, normalise_s)};
  };
  const auto term = [&](const Exponentials& e) {
    return kl_term(divided(e).t, divided(e).s, e.difference * T(kLn2) + log_ratio);
  };
  T kl = 0;
  positions.for_each([&](const Position& at) {
    const Pair pq = divided(of_logits(at));
    const T of_position = term(of_logits(at));  // outside as well, because a branch for each costs more
    kl += at.inside ? of_position : T(0);
    if (at.exists) student[at.slot] = pq.s - pq.t;  // 0 outside
  });
  return (sum_of_lanes(kl) + (outside ? outside * term(of_zeros) : T(0))) / steepness;
}

// Returns the mean squared error of so many positions. Outside positions are 0 in both logits.
template <class T, int kWindow>
LGF_DEVICE T squared_error(const Positions<kWindow>& positions, int count, const T* teacher, T* student) {
  const auto difference = numbers(
      positions, [&](const Position& at) { return at.inside ? student[at.slot] - teacher[at.slot] : T(0); });
  T sum = 0;
  positions.for_each([&](const Position& at) { sum += difference(at) * difference(at); });
  const T scale = T(2) / count;
  positions.for_each([&](const Position& at) {
    if (at.exists) student[at.slot] = difference(at) * scale;
  });
  return sum_of_lanes(sum) / count;
}

// Returns the divergence of the token at (y, x) in all its lanes. Its student's logits become the gradient. `kWindow` is K, or
// 0 if the compiler does not know it.
template <int kWindow, class T>
LGF_DEVICE T divergence(const Grid& grid, int K, const Divergence& d, int y, int x, const T* teacher, T* student) {
  const Positions<kWindow> positions(grid, K, y, x);
  const int count = d.exclude_boundary ? places_inside(grid, K, y, x) : K * K;
  const T value = d.squared_error ? squared_error(positions, count, teacher, student)
                                  : kl_divergence(positions, count - places_inside(grid, K, y, x), d.inverse_temperature,
                                                  teacher, student);
  const T poison = value - value;  // NaN where the value is infinite or NaN, else 0
  if (poison != T(0))
    positions.for_each([&](const Position& at) {
      if (at.exists) student[at.slot] = at.inside ? poison : T(0);
    });
  return value + poison;
}

}  // namespace cuda
}  // namespace lgf
