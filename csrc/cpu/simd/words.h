// Words of 16 bits in the two halves of each lane: of the two vectors that go through a rule together, one has the
// lower halves and the other the upper ones, and one instruction loads or stores them all.
#pragma once

#include "cpu/simd/unrolled.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// Conversions keep the other units busy enough: the multiplications that spare the divider make it 9 % slower.
using Pair = Unrolled<float, 2, false>;

FUSEDOPTIM_SIMD FloatBits bits_of(FloatVec v) { return (FloatBits)v.raw; }
FUSEDOPTIM_SIMD FloatVec from_bits(FloatBits bits) { return FloatVec((FloatVec::R)bits); }
FUSEDOPTIM_SIMD Pair pair_of(FloatBits first, FloatBits second) {
  Pair v;
  v.parts[0] = from_bits(first);
  v.parts[1] = from_bits(second);
  return v;
}

// Halves of lane i from words i and kFloats + i, and back.
#if defined(__AVX512F__)
FUSEDOPTIM_SIMD FloatBits spread(FloatBits words) {
  Raw<uint16_t, 32> from;
  for (int i = 0; i < 32; ++i) from[i] = uint16_t(i / 2 + i % 2 * 16);
  return FloatBits(_mm512_permutexvar_epi16(__m512i(from), __m512i(words)));
}
FUSEDOPTIM_SIMD FloatBits gather(FloatBits words) {
  Raw<uint16_t, 32> from;
  for (int i = 0; i < 32; ++i) from[i] = uint16_t(i % 16 * 2 + i / 16);
  return FloatBits(_mm512_permutexvar_epi16(__m512i(from), __m512i(words)));
}
#elif defined(__AVX2__)
FUSEDOPTIM_SIMD FloatBits spread(FloatBits words) {
  const __m256i from = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11,
                                        4, 5, 12, 13, 6, 7, 14, 15);
  return FloatBits(_mm256_shuffle_epi8(_mm256_permute4x64_epi64(__m256i(words), 0xd8), from));
}
FUSEDOPTIM_SIMD FloatBits gather(FloatBits words) {
  const __m256i from = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13,
                                        2, 3, 6, 7, 10, 11, 14, 15);
  return FloatBits(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(__m256i(words), from), 0xd8));
}
#else
FUSEDOPTIM_SIMD FloatBits spread(FloatBits words) {
  Raw<uint16_t, 2 * kFloats> result, from = (Raw<uint16_t, 2 * kFloats>)words;
  for (int i = 0; i < 2 * kFloats; ++i) result[i] = from[i / 2 + i % 2 * kFloats];
  return (FloatBits)result;
}
FUSEDOPTIM_SIMD FloatBits gather(FloatBits words) {
  Raw<uint16_t, 2 * kFloats> result, from = (Raw<uint16_t, 2 * kFloats>)words;
  for (int i = 0; i < 2 * kFloats; ++i) result[i] = from[i % kFloats * 2 + i / kFloats];
  return (FloatBits)result;
}
#endif

// `in_pairs`: a lane holds two words that lie side by side. A rule does not ask which element is where, and nothing has
// to change its lane; but every operand must be loaded so.
template <bool in_pairs>
FUSEDOPTIM_SIMD FloatBits load_words(const void* from) {
  FloatBits words;
  std::memcpy(&words, from, sizeof(words));
  return in_pairs ? words : spread(words);
}
template <bool in_pairs>
FUSEDOPTIM_SIMD void store_words(void* to, FloatBits words) {
  if (!in_pairs) words = gather(words);
  std::memcpy(to, &words, sizeof(words));
}
// ---- words of two vectors, in pairs -------------------------------------------------------------------------------
#if defined(__AVX512F__)
FUSEDOPTIM_SIMD __m512i swapped_words(__m512i a, __mmask64 which, __m512i kept) {
  Raw<uint8_t, 64> from;
  for (int i = 0; i < 64; ++i) from[i] = uint8_t(i % 16 ^ 2);
  return _mm512_mask_shuffle_epi8(kept, which, a, __m512i(from));
}
FUSEDOPTIM_SIMD FloatBits upper_halves(FloatBits a, FloatBits b) {
  return FloatBits(swapped_words(__m512i(a), 0x3333333333333333, __m512i(b)));
}
FUSEDOPTIM_SIMD FloatBits lower_halves(FloatBits a, FloatBits b) {
  return FloatBits(swapped_words(__m512i(b), 0xcccccccccccccccc, __m512i(a)));
}
// The nearest bf16, as nearest_bf16: up where the lower half is more than a half of it, or just that and the upper half
// is odd.
FUSEDOPTIM_SIMD FloatBits nearest_words(const Pair& v) {
  const FloatBits first = bits_of(v.parts[0]), second = bits_of(v.parts[1]), upper = upper_halves(first, second);
  const FloatBits lower = lower_halves(first, second) | (upper & 0x00010001);
  const __mmask32 up = _mm512_cmpgt_epu16_mask(__m512i(lower), _mm512_set1_epi16(int16_t(0x8000)));
  return FloatBits(_mm512_mask_add_epi16(__m512i(upper), up, __m512i(upper), _mm512_set1_epi16(1)));
}
FUSEDOPTIM_SIMD FloatBits stochastic_words(const Pair& v, FloatBits random) {
  const FloatBits first = bits_of(v.parts[0]), second = bits_of(v.parts[1]), upper = upper_halves(first, second);
  const __m512i sum = _mm512_add_epi16(__m512i(lower_halves(first, second)), __m512i(random));
  const __mmask32 up = _mm512_cmplt_epu16_mask(sum, __m512i(random));
  return FloatBits(_mm512_mask_add_epi16(__m512i(upper), up, __m512i(upper), _mm512_set1_epi16(1)));
}
#else
FUSEDOPTIM_SIMD FloatBits upper_halves(FloatBits a, FloatBits b) { return a >> 16 | (b & 0xffff0000); }
FUSEDOPTIM_SIMD FloatBits lower_halves(FloatBits a, FloatBits b) { return (a & 0xffff) | b << 16; }
FUSEDOPTIM_SIMD FloatBits nearest_words(const Pair& v) {
  return upper_halves(nearest_bf16(v.parts[0]), nearest_bf16(v.parts[1]));
}
FUSEDOPTIM_SIMD FloatBits stochastic_words(const Pair& v, FloatBits random) {
  return upper_halves(bits_of(v.parts[0]) + (random & 0xffff), bits_of(v.parts[1]) + (random >> 16));
}
#endif
FUSEDOPTIM_SIMD Pair widened(FloatBits words) { return pair_of(words << 16, words & 0xffff0000); }

// v, or the usual NaN where it is one: its own bits could carry into a number when they are rounded.
FUSEDOPTIM_SIMD FloatVec without_nan_bits(FloatVec v) {
#if defined(__AVX512F__)
  constexpr int kOfNaN = 0x33;  // the processor's NaN for each of both kinds, and all else as it is
  return FloatVec(FloatVec::R(_mm512_fixupimm_ps(v.raw, v.raw, _mm512_set1_epi32(kOfNaN), 0)));
#else
  return from_bits((v.raw != v.raw) ? FloatBits{} + 0x7fc00000 : bits_of(v));
#endif
}
FUSEDOPTIM_SIMD Pair without_nan_bits(const Pair& v) {
  return Pair::each([](FloatVec x) { return without_nan_bits(x); }, v);
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
