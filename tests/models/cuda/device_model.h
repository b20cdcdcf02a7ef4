// Functional model of a GPU in plain C++, with the functions of csrc/cuda/common/device.h: the kernels run on a CPU unchanged.
//
// The threads of a block are fibres. A warp runs until all its lanes wait at a barrier, and only then the next one, so that
// with a missing barrier one warp reads what another has not written, or has overwritten. The order of warps and lanes can
// be reversed. Shuffles, matrix loads and products synchronise a warp. An asynchronous copy overwrites its destination with
// NaN at once and completes only when it is waited for. Shared memory starts as NaN of every type.
//
// Asynchronous products of a warpgroup overwrite their sums with NaN at once, and complete when the four warps wait for them.
// They read shared memory by their descriptors. They fail where an operand has been written meanwhile, or was copied
// asynchronously without a fence, or where the fence for the sums or the commit is missing.
//
// The model has no time, no caches, no banks except for matrix loads, and no races within a warp.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>
#include <typeinfo>

#include "common/dtype.h"

#define LGF_DEVICE inline
#define LGF_HOST_DEVICE inline
#define LGF_UNROLL
#define LGF_NO_UNROLL

namespace lgf {
namespace cuda {
namespace model {

// Runs the blocks of a launch one after the other.
void multiprocessors(int& count, int& shared_bytes, int& shared_bytes_of_block);
void run_blocks(std::int64_t blocks, int threads, std::int64_t shared_bytes,
                const std::function<void(char* shared)>& kernel);

// Hands a launch to `lgf_model_launcher`, if there is one: a model of a GPU that runs what nvcc makes of the kernel.
bool launched_elsewhere(const std::type_info& kernel, std::int64_t blocks, int threads, std::int64_t shared_bytes,
                        const void* params, std::int64_t params_bytes);

// Operations of the running fibre. They return when they are complete.
int thread();
std::int64_t block();
std::int64_t blocks();
void barrier();
std::uint64_t exchange(std::uint64_t value, int mask);
void copy(void* shared, const void* global, bool wanted);
void commit();
void wait(int pending);
void load(unsigned (&r)[4], const void* row, bool transposed);
void product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool bfloat, int depth = 16);
unsigned shared_address(const void* p);
void fence_proxy();
void fence_group();
void product_async(float (&d)[64], std::uint64_t a, std::uint64_t b, bool bfloat, bool down_a, bool down_b);
void commit_group();
void wait_group();
bool warpgroups();

}  // namespace model

using std::exp;
using std::fabs;
using std::fmax;
using std::log;
using std::sqrt;

inline int thread_index() { return model::thread(); }
inline int block_index() { return static_cast<int>(model::block()); }
inline int block_count() { return static_cast<int>(model::blocks()); }
inline void sync_block() { model::barrier(); }

inline float rounded_product(float a, float b) { return a * b; }
inline double rounded_product(double a, double b) { return a * b; }
inline float power_of_two(float v) { return std::exp2(v); }
inline double power_of_two(double v) { return std::exp2(v); }

template <class T>
T shuffle_xor(T value, int mask) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = model::exchange(bits, mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline float widen(BFloat16 v) {
  const std::uint32_t bits = std::uint32_t(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline float widen(Float16 v) {
  _Float16 half;
  std::memcpy(&half, &v.bits, 2);
  return static_cast<float>(half);
}

template <class Half>
Half narrow(float v);
template <>
inline BFloat16 narrow<BFloat16>(float v) {
  if (v != v) return {0x7fff};
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Float16 narrow<Float16>(float v) {
  const _Float16 half = static_cast<_Float16>(v);
  Float16 result;
  std::memcpy(&result.bits, &half, 2);
  return result;
}

inline const char* added_up(const char* address) { return address; }
inline void copy_async(void* shared, const void* global, bool wanted) { model::copy(shared, global, wanted); }
inline void copy_commit() { model::commit(); }
template <int kPending>
void copy_wait() {
  model::wait(kPending);
}

inline void load_matrices(unsigned (&r)[4], const void* row) { model::load(r, row, false); }
inline void load_matrices_transposed(unsigned (&r)[4], const void* row) { model::load(r, row, true); }

template <class Half>
void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  model::product(d, a, b0, b1, std::is_same<Half, BFloat16>::value);
}

template <class Half>
void multiply(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
  model::product(d, {a0, a1, 0, 0}, b, 0, std::is_same<Half, BFloat16>::value, 8);
}

inline unsigned shared_address(const void* p) { return model::shared_address(p); }
inline void fence_async_proxy() { model::fence_proxy(); }
inline void warpgroup_fence() { model::fence_group(); }
inline void warpgroup_commit() { model::commit_group(); }
inline void warpgroup_wait(float (&)[64]) { model::wait_group(); }

template <class Half, bool kDownA, bool kDownB>
void multiply_async(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  model::product_async(d, a, b, std::is_same<Half, BFloat16>::value, kDownA, kDownB);
}

inline void use_device(int) {}
template <class Kernel>
void check_loads(int) {}
inline bool has_warpgroups(int) { return model::warpgroups(); }

struct Multiprocessors {
  int count, shared_bytes, shared_bytes_of_block;
};
inline Multiprocessors multiprocessors(int) {
  Multiprocessors all;
  model::multiprocessors(all.count, all.shared_bytes, all.shared_bytes_of_block);
  return all;
}

template <class Kernel>
void launch(std::int64_t blocks, std::int64_t shared_bytes, std::uintptr_t, const typename Kernel::Params& params) {
  if (model::launched_elsewhere(typeid(Kernel), blocks, Kernel::kThreads, shared_bytes, &params, sizeof params)) return;
  model::run_blocks(blocks, Kernel::kThreads, shared_bytes, [&](char* shared) { Kernel::run(params, shared); });
}

}  // namespace cuda
}  // namespace lgf
