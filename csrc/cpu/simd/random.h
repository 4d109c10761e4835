// core/philox.h, for several counters at once.
#pragma once

#include "core/philox.h"
#include "cpu/simd/vector.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// A word of each counter, in the lower half of a lane; what is in the upper half does not count.
constexpr int kCounters = kVectorBytes / 8;
using Word = Raw<uint64_t, kCounters>;

#if defined(__AVX512F__)
FUSEDOPTIM_SIMD Word multiply(Word a, Word b) { return Word(_mm512_mul_epu32(__m512i(a), __m512i(b))); }
FUSEDOPTIM_SIMD Word swap_halves(Word a) { return Word(_mm512_shuffle_epi32(__m512i(a), _MM_PERM_CDAB)); }
#elif defined(__AVX2__)
FUSEDOPTIM_SIMD Word multiply(Word a, Word b) { return Word(_mm256_mul_epu32(__m256i(a), __m256i(b))); }
FUSEDOPTIM_SIMD Word swap_halves(Word a) { return Word(_mm256_shuffle_epi32(__m256i(a), 0xb1)); }
#elif defined(__x86_64__)
FUSEDOPTIM_SIMD Word multiply(Word a, Word b) { return Word(_mm_mul_epu32(__m128i(a), __m128i(b))); }
FUSEDOPTIM_SIMD Word swap_halves(Word a) { return Word(_mm_shuffle_epi32(__m128i(a), 0xb1)); }
#else
FUSEDOPTIM_SIMD Word multiply(Word a, Word b) { return (a & 0xffffffff) * (b & 0xffffffff); }
FUSEDOPTIM_SIMD Word swap_halves(Word a) { return a >> 32 | a << 32; }
#endif

// Lanes `odd`, 2 + odd, ... of both in turn.
template <int odd>
FUSEDOPTIM_SIMD Word interleave(Word a, Word b) {
#if defined(__AVX512F__)
  return Word(odd ? _mm512_unpackhi_epi64(__m512i(a), __m512i(b)) : _mm512_unpacklo_epi64(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return Word(odd ? _mm256_unpackhi_epi64(__m256i(a), __m256i(b)) : _mm256_unpacklo_epi64(__m256i(a), __m256i(b)));
#else
  Word result;
  for (int i = 0; i < kCounters; ++i) result[i] = (i % 2 == 0 ? a : b)[i / 2 * 2 + odd];
  return result;
#endif
}

// The bits of `counters` counters from `counter` on, and of as many more as make whole vectors.
static __attribute__((noinline)) void random_bits(const RandomKey& key, uint64_t counter, int64_t counters,
                                                  uint16_t* to) {
  // In the end, those in even lanes come first.
  Word order;
  for (int i = 0; i < kCounters; ++i) order[i] = uint64_t(i % 2 * (kCounters / 2) + i / 2);
  const Word multiplier0 = Word{} + kPhiloxMultiplier[0], multiplier1 = Word{} + kPhiloxMultiplier[1];
  for (; counters > 0; counters -= kCounters, counter += kCounters, to += kCounters * kRandomsOfCounter) {
    const Counter first = Counter::of(key, counter);
    const Word n = order + counter;
    Word words[4] = {n, n >> 32 | uint64_t(first.words[1]), Word{} + first.words[2], Word{} + first.words[3]};
    uint32_t k0 = key.seed[0], k1 = key.seed[1];
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Word a = multiply(words[0], multiplier0), b = multiply(words[2], multiplier1);
      words[0] = swap_halves(b) ^ words[1] ^ uint64_t(k0);
      words[1] = b;
      words[2] = swap_halves(a) ^ words[3] ^ uint64_t(k1);
      words[3] = a;
      k0 += kPhiloxWeyl[0];
      k1 += kPhiloxWeyl[1];
    }
    const Word lower = (words[0] & 0xffffffff) | words[1] << 32, upper = (words[2] & 0xffffffff) | words[3] << 32;
    const Word of_counters[2] = {interleave<0>(lower, upper), interleave<1>(lower, upper)};
    std::memcpy(to, of_counters, sizeof(of_counters));
  }
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
