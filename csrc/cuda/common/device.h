// Device functions of the kernels: indices, barriers, shuffles, asynchronous copies, matrix products, launches.
//
// No other file of csrc/cuda is specific to CUDA. Without a CUDA compiler a functional model has the same names
// (tests/models/cuda/device_model.h) and runs the same kernels on a CPU, for tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../common/dtype.h"

#ifndef __CUDACC__
#include "device_model.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#define LGF_DEVICE __device__ __forceinline__
#define LGF_HOST_DEVICE __host__ __device__ __forceinline__
#define LGF_UNROLL _Pragma("unroll")
#define LGF_NO_UNROLL _Pragma("unroll 1")

namespace lgf {
namespace cuda {

// Read again at each use: what follows from it is cheap to compute, and its registers are needed for the sums of the
// products.
LGF_DEVICE int thread_index() {
  unsigned index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return static_cast<int>(index & 1023);
}
LGF_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
LGF_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
LGF_DEVICE void sync_block() { __syncthreads(); }

// A product that is rounded and not fused with an addition.
LGF_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
LGF_DEVICE double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// 2^v. In float by one instruction, to two units in the last place; what would be denormal becomes 0.
LGF_DEVICE float power_of_two(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
  return power;
}
LGF_DEVICE double power_of_two(double v) { return exp2(v); }

template <class T>
LGF_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// ---- half precision ---------------------------------------------------------------------------

LGF_DEVICE float widen(BFloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
LGF_DEVICE float widen(Float16 v) { return __half2float(__ushort_as_half(v.bits)); }

template <class Half>
LGF_DEVICE Half narrow(float v);
template <>
LGF_DEVICE BFloat16 narrow<BFloat16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}
template <>
LGF_DEVICE Float16 narrow<Float16>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}

// Returns a sum of addresses of which the compiler knows no parts: it would add them up again for each place relative to it.
LGF_DEVICE const char* added_up(const char* address) {
  asm volatile("" : "+l"(address));
  return address;
}

// ---- asynchronous copies of 16 bytes to shared memory -------------------------------------------

LGF_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes, or writes zeros and reads nothing if not `wanted`.
LGF_DEVICE void copy_async(void* shared, const void* global, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(wanted ? 16 : 0)
               : "memory");
}
LGF_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, except for those of the last `kPending` groups.
template <int kPending>
LGF_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- matrices -----------------------------------------------------------------------------------

// Loads four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
LGF_DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
LGF_DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d (16x8, float32) += a (16x16) b (16x8), by the lanes of a warp together.
template <class Half>
LGF_DEVICE void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
LGF_DEVICE void multiply<BFloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
LGF_DEVICE void multiply<Float16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d (16x8, float32) += a (16x8) b (8x8): the first half of such a product.
template <class Half>
LGF_DEVICE void multiply(float (&d)[4], unsigned a0, unsigned a1, unsigned b);
template <>
LGF_DEVICE void multiply<BFloat16>(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b));
}
template <>
LGF_DEVICE void multiply<Float16>(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b));
}

// ---- Hopper's warpgroups ----------------------------------------------------------------------

// Compiled only for sm_90a, and chosen only where `has_warpgroups`.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define LGF_HOPPER_ASM asm volatile
#else
#define LGF_HOPPER_ASM(...) __trap()
#endif

#define LGF_8_NUMBERS(d, i)                                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define LGF_64_NUMBERS(d)                                                                                 \
  LGF_8_NUMBERS(d, 0), LGF_8_NUMBERS(d, 8), LGF_8_NUMBERS(d, 16), LGF_8_NUMBERS(d, 24), LGF_8_NUMBERS(d, 32), \
      LGF_8_NUMBERS(d, 40), LGF_8_NUMBERS(d, 48), LGF_8_NUMBERS(d, 56)

// Makes what this thread has written to shared memory visible to `multiply_async` of the threads that wait at a barrier.
LGF_DEVICE void fence_async_proxy() { LGF_HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory"); }

// Separates other uses of the sums from the products that are added to them.
LGF_DEVICE void warpgroup_fence() { LGF_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
LGF_DEVICE void warpgroup_commit() { LGF_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all products of the warpgroup. After it these sums may be used.
LGF_DEVICE void warpgroup_wait(float (&d)[64]) {
  LGF_HOPPER_ASM("wgmma.wait_group.sync.aligned 0;" : LGF_64_NUMBERS(d)::"memory");
}

// d (64x128, float32) += a (64x16) b (16x128), of operands in shared memory that their descriptors describe, by the
// threads of a warpgroup together. kDown: stored with the dimension that is summed over not contiguous.
template <class Half, bool kDownA, bool kDownB>
LGF_DEVICE void multiply_async(float (&d)[64], std::uint64_t a, std::uint64_t b) {
#define LGF_MULTIPLY_ASYNC(type)                                                                          \
  LGF_HOPPER_ASM(                                                                                         \
      "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "%64, %65, p, 1, 1, %66, %67;}"                                                                     \
      : LGF_64_NUMBERS(d)                                                                                 \
      : "l"(a), "l"(b), "n"(int(kDownA)), "n"(int(kDownB)))
  if (std::is_same<Half, BFloat16>::value)
    LGF_MULTIPLY_ASYNC("bf16");
  else
    LGF_MULTIPLY_ASYNC("f16");
#undef LGF_MULTIPLY_ASYNC
}

// ---- launching ----------------------------------------------------------------------------------

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline void use_device(int device) { check(cudaSetDevice(device)); }

struct Multiprocessors {
  int count, shared_bytes, shared_bytes_of_block;  // shared memory of each, and as much of it as one block may have
};

inline Multiprocessors multiprocessors(int device) {
  Multiprocessors all = {};
  check(cudaDeviceGetAttribute(&all.count, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&all.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  check(cudaDeviceGetAttribute(&all.shared_bytes_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return all;
}

// Returns whether `multiply_async` runs on a device. It is compiled for Hopper only.
inline bool has_warpgroups(int device) {
#ifdef LGF_HOPPER
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
#else
  static_cast<void>(device);
  return false;
#endif
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerSm)
    entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(1024) char shared[];
  Kernel::run(params, shared);
}

// Throws, with the versions of driver and compiler, unless a kernel of this module can be loaded on a device.
template <class Kernel>
void check_loads(int device) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, entry<Kernel>);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // torch must not find this error later
  int driver = 0;
  cudaDriverGetVersion(&driver);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  throw std::runtime_error(std::string(cudaGetErrorString(error)) + " (" +
                           (driver ? "the driver supports CUDA " + version(driver) : "there is no driver") +
                           ", the module was built by CUDA " + version(CUDART_VERSION) + ")");
}

// Launches a kernel: a class with kThreads, kBlocksPerSm (which limits its registers), Params, and run(params, shared).
template <class Kernel>
void launch(std::int64_t blocks, std::int64_t shared_bytes, std::uintptr_t stream, const typename Kernel::Params& params) {
  if (blocks > 0x7fffffff) throw std::runtime_error("too many tiles for one launch");
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  entry<Kernel><<<static_cast<unsigned>(blocks), Kernel::kThreads, static_cast<std::size_t>(shared_bytes),
                  reinterpret_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError());
}

}  // namespace cuda
}  // namespace lgf

#endif
