// Lets g++ compile a .cu file of the product as it stands: included ahead of it with -include, this gives the words of
// CUDA C++ that device code uses a meaning on the runtime of runtime.h.
#pragma once

// CUDA's own headers first: they say what the macros below replace.
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::cuda_on_cpu::thread_index())
#define blockIdx (::cuda_on_cpu::block_index())
#define blockDim (::cuda_on_cpu::block_size())
#define gridDim (::cuda_on_cpu::grid_size())

#define FUSEDOPTIM_SHARED(Type, name) \
  static char name##_key;             \
  Type& name = *static_cast<Type*>(::cuda_on_cpu::shared_memory(&name##_key, sizeof(Type)))

inline void __syncthreads() { ::cuda_on_cpu::block_barrier(); }
inline void __syncwarp() { ::cuda_on_cpu::warp_barrier(); }
inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int lanes) {
  return ::cuda_on_cpu::warp_exchange(value, uint32_t(lanes));
}
inline void __threadfence() { ::cuda_on_cpu::fence(); }

inline unsigned atomicInc(unsigned* at, unsigned limit) {
  return ::cuda_on_cpu::atomic_update(at, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = uint64_t(uint32_t(high)) << 32 | uint32_t(low);
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline int __double2hiint(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return int(uint32_t(bits >> 32));
}
inline int __double2loint(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return int(uint32_t(bits));
}

using std::max;
using std::min;
