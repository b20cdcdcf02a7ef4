// Vector type of GCC/Clang vector extensions, compiled once per instruction set.
//
// The build of an instruction set defines LGF_ISA (a namespace); the width follows from the compiler's target. Everything
// is in an anonymous namespace inside that namespace, and no function of the C++ standard library is called: the linker
// would merge an inline function with external linkage across instruction sets, and an old CPU could run AVX-512 code.
#pragma once

#include <cstdint>
#include <utility>

#include "../../common/dtype.h"

#ifndef LGF_ISA
#error "define LGF_ISA to the namespace of the instruction set being compiled"
#endif

#define LGF_INLINE inline __attribute__((always_inline))

namespace lgf {
namespace LGF_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Element, int Lanes>
struct VectorOf {
  typedef Element type __attribute__((vector_size(Lanes * sizeof(Element))));
};

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
using Vec = typename VectorOf<T, kLanes<T>>::type;

// Signed integers as wide as T: the type of comparison masks.
template <class T> struct MaskElement;
template <> struct MaskElement<float> { using type = std::int32_t; };
template <> struct MaskElement<double> { using type = std::int64_t; };
template <class T>
using Mask = typename VectorOf<typename MaskElement<T>::type, kLanes<T>>::type;

template <class T>
LGF_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // x - 0 is x for every x: a plain broadcast
}

template <class V, class Element>
LGF_INLINE V load_raw(const Element* source) {
  V v;
  __builtin_memcpy(&v, source, sizeof(V));
  return v;
}

template <class T>
LGF_INLINE Vec<T> load(const T* source) {
  return load_raw<Vec<T>>(source);
}

template <class T>
LGF_INLINE void store(T* target, Vec<T> v) {
  __builtin_memcpy(target, &v, sizeof(v));
}

// Returns the same address, whose origin the compiler does not know. Otherwise it splits every address of an unrolled loop
// into a part that changes and one that does not, and has not enough registers for the latter.
template <class T>
LGF_INLINE const T* opaque(const T* address) {
  asm("" : "+r"(address));
  return address;
}

LGF_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
LGF_INLINE double square_root(double x) { return __builtin_sqrt(x); }
LGF_INLINE float logarithm(float x) { return __builtin_logf(x); }
LGF_INLINE double logarithm(double x) { return __builtin_log(x); }

// ---- conversions between storage types and lanes of float ------------------------------------

template <int Lanes> using Floats = typename VectorOf<float, Lanes>::type;
template <int Lanes> using Words = typename VectorOf<std::uint32_t, Lanes>::type;
template <int Lanes> using Shorts = typename VectorOf<std::uint16_t, Lanes>::type;

template <int Lanes>
LGF_INLINE Floats<Lanes> widen(BFloat16, Words<Lanes> bits) {
  return (Floats<Lanes>)(bits << 16);
}

template <int Lanes>
LGF_INLINE Floats<Lanes> widen(Float16, Words<Lanes> bits) {
  // Shifted into place, the exponent is 112 too small; the multiplication corrects it and normalises subnormals. Exponent
  // 31 (inf, NaN) must become 255.
  const Words<Lanes> magnitude = (bits & 0x7fffu) << 13;
  const Words<Lanes> special = (Words<Lanes>)(magnitude >= 0x0f800000u) & 0x7f800000u;
  const Floats<Lanes> scaled = (Floats<Lanes>)magnitude * 0x1p112f;
  return (Floats<Lanes>)((Words<Lanes>)scaled | special | ((bits & 0x8000u) << 16));
}

template <int Lanes>
LGF_INLINE Words<Lanes> narrow(BFloat16, Floats<Lanes> value) {
  const Words<Lanes> bits = (Words<Lanes>)value;
  const Words<Lanes> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  return value == value ? rounded : (Words<Lanes>{} + 0x7fc0u);
}

template <int Lanes>
LGF_INLINE Words<Lanes> narrow(Float16, Floats<Lanes> value) {
  const Words<Lanes> bits = (Words<Lanes>)value;
  const Words<Lanes> magnitude = bits & 0x7fffffffu;
  // Adding 0.5 aligns the units of a subnormal half with those of the sum, so that the addition rounds.
  const Words<Lanes> subnormal = (Words<Lanes>)((Floats<Lanes>)magnitude + 0.5f) - 0x3f000000u;
  const Words<Lanes> normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  Words<Lanes> half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? (Words<Lanes>{} + 0x7c00u) : half;  // rounds past 65504
  half = magnitude > 0x7f800000u ? (Words<Lanes>{} + 0x7e00u) : half;
  return half | ((bits >> 16) & 0x8000u);
}

// Conversion of kLanes<T> consecutive elements of any storage type to Vec<T>, and back.
template <class T, class Storage>
struct Convert {
  static constexpr int lanes = kLanes<T>;

  static LGF_INLINE Vec<T> from(const Storage* source) {
    if constexpr (sizeof(Storage) == 2) {
      const auto bits = __builtin_convertvector(load_raw<Shorts<lanes>>(source), Words<lanes>);
      return __builtin_convertvector(widen<lanes>(Storage{}, bits), Vec<T>);
    } else {
      using Source = typename VectorOf<Storage, lanes>::type;
      return __builtin_convertvector(load_raw<Source>(source), Vec<T>);
    }
  }

  static LGF_INLINE void to(Storage* target, Vec<T> value) {
    if constexpr (sizeof(Storage) == 2) {
      const auto bits = narrow<lanes>(Storage{}, __builtin_convertvector(value, Floats<lanes>));
      const auto packed = __builtin_convertvector(bits, Shorts<lanes>);
      __builtin_memcpy(target, &packed, sizeof(packed));
    } else {
      const auto converted = __builtin_convertvector(value, typename VectorOf<Storage, lanes>::type);
      __builtin_memcpy(target, &converted, sizeof(converted));
    }
  }
};

// Loads the first `count` < kLanes<T> elements; the other lanes are 0.
template <class T, class Storage>
LGF_INLINE Vec<T> load_partial(const Storage* source, std::int64_t count) {
  Storage buffer[kLanes<T>] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = source[i];
  return Convert<T, Storage>::from(buffer);
}

template <class T, class Storage>
LGF_INLINE void store_partial(Storage* target, Vec<T> value, std::int64_t count) {
  Storage buffer[kLanes<T>];
  Convert<T, Storage>::to(buffer, value);
  for (std::int64_t i = 0; i < count; ++i) target[i] = buffer[i];
}

// ---- lane exchanges ---------------------------------------------------------------------------

// Exchanges of a butterfly: with blocks of `Half` lanes, `low` interleaves the even blocks of a and b, `high` the odd
// ones. log2(lanes) levels transpose a square, or sum its rows.
template <int Half, class V, class M, int... I>
LGF_INLINE V low_blocks(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((I & Half) ? n + I - Half : I)...);
#else
  return __builtin_shuffle(a, b, M{((I & Half) ? n + I - Half : I)...});
#endif
}

template <int Half, class V, class M, int... I>
LGF_INLINE V high_blocks(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((I & Half) ? n + I : I + Half)...);
#else
  return __builtin_shuffle(a, b, M{((I & Half) ? n + I : I + Half)...});
#endif
}

template <int Half, class T>
LGF_INLINE Vec<T> low(Vec<T> a, Vec<T> b) {
  return low_blocks<Half, Vec<T>, Mask<T>>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

template <int Half, class T>
LGF_INLINE Vec<T> high(Vec<T> a, Vec<T> b) {
  return high_blocks<Half, Vec<T>, Mask<T>>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

// Lane i of the result is the sum of the lanes of v[i]; v has kLanes<T> vectors and is overwritten.
template <class T, int Half = kLanes<T> / 2>
LGF_INLINE Vec<T> row_sums(Vec<T>* v) {
#pragma GCC unroll 16
  for (int i = 0; i < Half; ++i) v[i] = low<Half, T>(v[i], v[i + Half]) + high<Half, T>(v[i], v[i + Half]);
  if constexpr (Half > 1) return row_sums<T, Half / 2>(v);
  else return v[0];
}

// Transposes the kLanes<T> x kLanes<T> square whose rows are v[0], v[1], ...
template <class T, int Half = kLanes<T> / 2>
LGF_INLINE void transpose_square(Vec<T>* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i & Half) continue;
    const Vec<T> a = v[i], b = v[i + Half];
    v[i] = low<Half, T>(a, b);
    v[i + Half] = high<Half, T>(a, b);
  }
  if constexpr (Half > 1) transpose_square<T, Half / 2>(v);
}

// Sums by halves: the chain of dependent additions is log2(lanes) long.
template <class T, int Half = kLanes<T> / 2>
LGF_INLINE T sum_of_lanes(Vec<T> v) {
  v = low<Half, T>(v, v) + high<Half, T>(v, v);
  if constexpr (Half > 1) return sum_of_lanes<T, Half / 2>(v);
  else return v[0];
}

// ---- functions --------------------------------------------------------------------------------

template <class T>
LGF_INLINE Vec<T> square_root_lanes(Vec<T> x) {
  T lanes[kLanes<T>];  // an array, which lets the loop become one instruction
  store<T>(lanes, x);
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = square_root(lanes[i]);
  return load<T>(lanes);
}

template <class T>
LGF_INLINE Vec<T> logarithm_lanes(Vec<T> x) {
  Vec<T> result{};
  for (int i = 0; i < kLanes<T>; ++i) result[i] = logarithm(x[i]);
  return result;
}

// e^x for x <= 0, about 1 ulp. Below -87 (float) the result is 0; NaN stays NaN.
LGF_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves an integer in the low mantissa bits
  const Vec<float> clamped = x < -87.0f ? broadcast(-87.0f) : x;
  const Vec<float> n = (clamped * 1.44269504f + kRound) - kRound;
  Vec<float> r = clamped - n * 0.693145751953125f;  // ln 2 in two parts: the first product is exact
  r = r - n * 1.42860677e-06f;
  Vec<float> p = r * 0.00019901622727047652f + 0.0013935454189777374f;
  p = p * r + 0.008333295583724976f;
  p = p * r + 0.04166644811630249f;
  p = p * r + 0.1666666716337204f;
  p = p * r + 0.5f;
  const Vec<float> e_r = (p * r) * r + r + 1.0f;
  const Mask<float> exponent = __builtin_convertvector(n, Mask<float>);
  const Vec<float> power = (Vec<float>)((exponent + 127) << 23);
  return x < -87.0f ? Vec<float>{} : e_r * power;
}

LGF_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  Vec<double> result{};
  for (int i = 0; i < kLanes<double>; ++i) result[i] = __builtin_exp(x[i]);
  return result;
}

}  // namespace
}  // namespace LGF_ISA
}  // namespace lgf
