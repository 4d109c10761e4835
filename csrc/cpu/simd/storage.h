// Loads and stores of one vector for every storage type: widened on load, rounded once to nearest even on store.
#pragma once

#include "cpu/simd/vector.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// How many bytes ahead of the work operands are fetched. The processor's own prefetcher stops at the end of each page
// of 4 KiB; on ResNet-50 this takes Adam's step from 0.87 to 0.98 of the streaming limit.
constexpr int kAhead = 2048;
constexpr int kLine = 64;

using FloatVec = Vec<float>;
constexpr int kFloats = FloatVec::kLanes;

template <class T>
FUSEDOPTIM_SIMD Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v.raw, from, sizeof(v.raw));
  return v;
}
template <class T>
FUSEDOPTIM_SIMD void store(T* to, Vec<T> v) {
  std::memcpy(to, &v.raw, sizeof(v.raw));
}

// ---- integers of 8 and 16 bits, one in each lane of 32 ------------------------------------------------------------
// Compilers convert them in several parts for __builtin_convertvector, or one by one.
using FloatBits = Raw<uint32_t, kFloats>;
#if defined(__AVX512F__)
FUSEDOPTIM_SIMD FloatBits load_bits(const uint16_t* from) {
  return FloatBits(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
FUSEDOPTIM_SIMD FloatBits load_bits(const uint8_t* from) {
  return FloatBits(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
#elif defined(__AVX2__)
FUSEDOPTIM_SIMD FloatBits load_bits(const uint16_t* from) {
  return FloatBits(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
FUSEDOPTIM_SIMD FloatBits load_bits(const uint8_t* from) {
  return FloatBits(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
#else
template <class E>
FUSEDOPTIM_SIMD FloatBits load_bits(const E* from) {
  Raw<E, kFloats> raw;
  std::memcpy(&raw, from, sizeof(raw));
  return __builtin_convertvector(raw, FloatBits);
}
#endif

// ---- bf16: the upper half of a float ------------------------------------------------------------------------------
FUSEDOPTIM_SIMD FloatVec load(const BFloat16* from) { return FloatVec((FloatVec::R)(load_bits(&from->bits) << 16)); }

// The nearest bf16 in the upper half of each lane, and anything in the lower. NaN stays NaN only where nothing is set
// in its lower half, or the addition could carry it over to a number. So it is with all that arithmetic returns here:
// the processor's own NaN, or that of an operand: what was a bf16, or an option, a step count or a scale, of which any
// NaN becomes the usual one.
FUSEDOPTIM_SIMD FloatBits nearest_bf16(FloatVec v) {
#if defined(__AVX512F__)
  const __m512i bits = _mm512_castps_si512(v.raw), half_up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  return FloatBits(_mm512_mask_add_epi32(half_up, odd, half_up, _mm512_set1_epi32(1)));
#else
  const FloatBits bits = (FloatBits)v.raw;
  return bits + 0x7fff + ((bits >> 16) & 1);
#endif
}
FUSEDOPTIM_SIMD void store(BFloat16* to, FloatVec v) {
  const auto rounded = __builtin_convertvector(nearest_bf16(v) >> 16, Raw<uint16_t, kFloats>);
  std::memcpy(to, &rounded, sizeof(rounded));
}

// ---- fp16 ---------------------------------------------------------------------------------------------------------
#if defined(__AVX512F__)
FUSEDOPTIM_SIMD FloatVec load(const Half* from) {
  return FloatVec(FloatVec::R(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))));
}
FUSEDOPTIM_SIMD void store(Half* to, FloatVec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__)
FUSEDOPTIM_SIMD FloatVec load(const Half* from) {
  return FloatVec(FloatVec::R(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
}
FUSEDOPTIM_SIMD void store(Half* to, FloatVec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Without conversion instructions: integer arithmetic, lane by lane.
static __attribute__((noinline)) float widen(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static __attribute__((noinline)) uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 2^16 or more: infinity
  // The mantissa with its leading one, and how many of its bits fall off; below 2^-14 the result is subnormal.
  const uint32_t exponent = magnitude >> 23;
  if (exponent < 102) return uint16_t(sign);  // under half of the smallest subnormal
  const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000, dropped = exponent < 113 ? 126 - exponent : 13;
  const uint32_t kept = mantissa >> dropped, rest = mantissa & ((1u << dropped) - 1), half = 1u << (dropped - 1);
  const uint32_t rounded = kept + (rest > half || (rest == half && (kept & 1)));
  return uint16_t(sign | (exponent < 113 ? rounded : ((exponent - 113) << 10) + rounded));
}
FUSEDOPTIM_SIMD FloatVec load(const Half* from) {
  FloatVec v;
  for (int i = 0; i < kFloats; ++i) v.raw[i] = widen(from[i].bits);
  return v;
}
FUSEDOPTIM_SIMD void store(Half* to, FloatVec v) {
  for (int i = 0; i < kFloats; ++i) to[i].bits = narrow(v.raw[i]);
}
#endif

// Fewer elements than a vector holds: through a buffer on the stack, so that no byte beyond them is touched.
template <class S>
FUSEDOPTIM_SIMD auto load_part(const S* from, int count) {
  S whole[Vec<Arithmetic<S>>::kLanes] = {};
  std::memcpy(whole, from, count * sizeof(S));
  return load(whole);
}
template <class S, class V>
FUSEDOPTIM_SIMD void store_part(S* to, V v, int count) {
  S whole[V::kLanes];
  store(whole, v);
  std::memcpy(to, whole, count * sizeof(S));
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
