// A SIMD vector with the operators that a rule uses, for the instruction set that this file is compiled for.
//
// Lives in a namespace per instruction set, and includes no header whose inline functions another object file could
// share: otherwise the linker might keep, say, an AVX-512 copy of such a function for every machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/dtype.h"

#ifndef FUSEDOPTIM_ISA
#error "FUSEDOPTIM_ISA names the instruction set, and with it the namespace"
#endif

#define FUSEDOPTIM_SIMD inline __attribute__((always_inline))

namespace fusedoptim::FUSEDOPTIM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int lanes>
struct RawOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <class T, int lanes>
using Raw = typename RawOf<T, lanes>::type;

// ---- what the compiler's vector operators do not give: fma, square root and maximum -------------------------------
// The processor's maximum of b and a is a where they are equal or one is NaN; where b is NaN, so is the maximum here.
#if defined(__AVX512F__)
FUSEDOPTIM_SIMD __m512 raw_fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
FUSEDOPTIM_SIMD __m512d raw_fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
FUSEDOPTIM_SIMD __m512 raw_sqrt(__m512 x) { return _mm512_sqrt_ps(x); }
FUSEDOPTIM_SIMD __m512d raw_sqrt(__m512d x) { return _mm512_sqrt_pd(x); }
FUSEDOPTIM_SIMD __m512 raw_max(__m512 a, __m512 b) {
  return _mm512_mask_max_ps(b, _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), b, a);
}
FUSEDOPTIM_SIMD __m512d raw_max(__m512d a, __m512d b) {
  return _mm512_mask_max_pd(b, _mm512_cmp_pd_mask(b, b, _CMP_ORD_Q), b, a);
}
#elif defined(__AVX2__)
FUSEDOPTIM_SIMD __m256 raw_fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
FUSEDOPTIM_SIMD __m256d raw_fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
FUSEDOPTIM_SIMD __m256 raw_sqrt(__m256 x) { return _mm256_sqrt_ps(x); }
FUSEDOPTIM_SIMD __m256d raw_sqrt(__m256d x) { return _mm256_sqrt_pd(x); }
FUSEDOPTIM_SIMD __m256 raw_max(__m256 a, __m256 b) {
  return _mm256_blendv_ps(_mm256_max_ps(b, a), b, _mm256_cmp_ps(b, b, _CMP_UNORD_Q));
}
FUSEDOPTIM_SIMD __m256d raw_max(__m256d a, __m256d b) {
  return _mm256_blendv_pd(_mm256_max_pd(b, a), b, _mm256_cmp_pd(b, b, _CMP_UNORD_Q));
}
#else
template <class R>
FUSEDOPTIM_SIMD R raw_max(R a, R b) {
  return ((b > a) | (b != b)) ? b : a;
}
template <class R>
FUSEDOPTIM_SIMD R raw_sqrt(R x) {
  for (unsigned i = 0; i < sizeof(R) / sizeof(x[0]); ++i) {
    x[i] = sizeof(x[0]) == 8 ? __builtin_sqrt(x[i]) : __builtin_sqrtf(float(x[i]));
  }
  return x;
}
FUSEDOPTIM_SIMD Raw<double, 2> raw_fma(Raw<double, 2> a, Raw<double, 2> b, Raw<double, 2> c) {
  for (int i = 0; i < 2; ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
}
FUSEDOPTIM_SIMD Raw<float, 4> raw_fma(Raw<float, 4> a, Raw<float, 4> b, Raw<float, 4> c) {
#if defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  // No fma instruction: the product is exact in double; the sum is rounded to odd there, after which the rounding to
  // float is the only one that counts (Boldo & Melquiond, "Emulation of a FMA and correctly rounded sums: proved
  // algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008).
  using Wide = Raw<double, 4>;
  using Bits = Raw<int64_t, 4>;
  const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  const Wide addend = __builtin_convertvector(c, Wide);
  const Wide sum = product + addend;
  const Wide back = sum - product;
  const Wide error = (product - (sum - back)) + (addend - back);  // exact: sum + error == product + addend
  const Bits inexact = (error > 0) | (error < 0);                 // false for NaN, as after an infinite sum
  const Bits even = ((Bits)sum & 1) == 0;
  const Bits away = (Bits)((error > 0) == (sum > 0));  // all ones: the true value is larger in magnitude than sum
  const Bits to_odd = (away & 1) - (~away & 1);        // one unit in the last place outwards or inwards
  const Wide odd = (Wide)((Bits)sum + (inexact & even & to_odd));
  return __builtin_convertvector(odd, Raw<float, 4>);
#endif
}
#endif

// ---- the vector ---------------------------------------------------------------------------------------------------
template <class T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / int(sizeof(T));
  using R = Raw<T, kLanes>;
  R raw;

  Vec() = default;
  FUSEDOPTIM_SIMD explicit Vec(R r) : raw(r) {}
  FUSEDOPTIM_SIMD explicit Vec(T x) : raw(x - R{}) {}  // in every lane; x - 0 is x, the sign of zero included

  friend FUSEDOPTIM_SIMD Vec operator+(Vec a, Vec b) { return Vec(a.raw + b.raw); }
  friend FUSEDOPTIM_SIMD Vec operator-(Vec a, Vec b) { return Vec(a.raw - b.raw); }
  friend FUSEDOPTIM_SIMD Vec operator*(Vec a, Vec b) { return Vec(a.raw * b.raw); }
  friend FUSEDOPTIM_SIMD Vec operator/(Vec a, Vec b) { return Vec(a.raw / b.raw); }
  friend FUSEDOPTIM_SIMD Vec fma(Vec a, Vec b, Vec c) { return Vec(R(raw_fma(a.raw, b.raw, c.raw))); }
  friend FUSEDOPTIM_SIMD Vec sqrt(Vec x) { return Vec(R(raw_sqrt(x.raw))); }
  friend FUSEDOPTIM_SIMD Vec if_nonzero(Vec test, Vec yes, Vec no) {
    return Vec(((test.raw > 0) | (test.raw < 0)) ? yes.raw : no.raw);
  }
  friend FUSEDOPTIM_SIMD Vec if_positive(Vec test, Vec yes, Vec no) { return Vec((test.raw > 0) ? yes.raw : no.raw); }
  friend FUSEDOPTIM_SIMD Vec max(Vec a, Vec b) { return Vec(R(raw_max(a.raw, b.raw))); }
  friend FUSEDOPTIM_SIMD Vec min(Vec a, Vec b) { return Vec(((b.raw < a.raw) | (b.raw != b.raw)) ? b.raw : a.raw); }
  friend FUSEDOPTIM_SIMD Vec abs(Vec x) {
    using Bits = Raw<std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>, kLanes>;
    return Vec(R((Bits)x.raw & ~(Bits)Vec(T(-0.0)).raw));
  }
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
