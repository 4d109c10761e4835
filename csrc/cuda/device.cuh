// Loads, stores and conversions of the device code. Bits are those of csrc/cpu/simd/storage.h.
#pragma once

#include <cuda_fp16.h>

#include <cfloat>
#include <cstring>

#include "core/clip.h"
#include "cuda/launch.h"

// Shared memory of a block. A host that stands in for a device defines its own.
#if !defined(FUSEDOPTIM_SHARED)
#define FUSEDOPTIM_SHARED(Type, name) __shared__ Type name
#endif

namespace fusedoptim::cuda {

// As many elements as fill 16 bytes, the widest access that there is.
template <class S>
constexpr int kWidth = 16 / sizeof(S);

template <class S, int width>
struct alignas(width * sizeof(S)) Pack {
  S at[width];
};

// Shared memory for a T, whose constructor must not run there.
template <class T>
struct alignas(16) Room {
  unsigned char bytes[sizeof(T)];
  __device__ __forceinline__ T& get() { return *reinterpret_cast<T*>(bytes); }
};

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }

template <class S>
__device__ __forceinline__ S narrow(Arithmetic<S> x) {
  if constexpr (sizeof(S) >= 4) {
    return x;
  } else if constexpr (std::is_same_v<S, Half>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else {
    const uint32_t bits = __float_as_uint(x);
    return {x == x ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : uint16_t(0x7fc0)};
  }
}

// Two numbers as words are stored, the first in the lower half: one instruction where there is one.
template <class S>
__device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (std::is_same_v<S, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return narrow<S>(low).bits | uint32_t(narrow<S>(high).bits) << 16;
#endif
}

__device__ __forceinline__ bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Tells the compiler that a pointer from a table points into global memory: accesses by a generic one are slower.
template <class P>
__device__ __forceinline__ P* global(P* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

__device__ __forceinline__ double read(const void* at, bool is_double) {
  return is_double ? *global(static_cast<const double*>(at)) : double(*global(static_cast<const float*>(at)));
}

}  // namespace fusedoptim::cuda
