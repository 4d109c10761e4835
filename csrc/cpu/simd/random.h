// core/philox.h, as many counters at once as a vector has lanes.
#pragma once

#include "core/philox.h"
#include "cpu/simd/vector.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

constexpr int kCounters = kVectorBytes / 4;
using Words = Raw<uint32_t, kCounters>;

// The two halves of a product of 32 bits each.
struct Product {
  Words high, low;
};
#if defined(__x86_64__)
#if defined(__AVX512F__)
using Register = __m512i;
#define FUSEDOPTIM_OP(op) _mm512_##op
#elif defined(__AVX2__)
using Register = __m256i;
#define FUSEDOPTIM_OP(op) _mm256_##op
#else
using Register = __m128i;
#define FUSEDOPTIM_OP(op) _mm_##op
#endif
FUSEDOPTIM_SIMD Product multiply(Words x, uint32_t by) {
  const Register factor = Register(Words{} + by);
  const Words even = Words(FUSEDOPTIM_OP(mul_epu32)(Register(x), factor));
  const Words odd = Words(FUSEDOPTIM_OP(mul_epu32)(FUSEDOPTIM_OP(srli_epi64)(Register(x), 32), factor));
  const Words lower = Words(FUSEDOPTIM_OP(srli_epi64)(Register(Words{} - 1), 32)), upper = ~lower;
  return {(Words(FUSEDOPTIM_OP(srli_epi64)(Register(even), 32)) & lower) | (odd & upper),
          (even & lower) | Words(FUSEDOPTIM_OP(slli_epi64)(Register(odd), 32))};
}
// Word k of counter c becomes word c % 4 of vector ... : transposes 4 x 4 words in each 16 bytes.
FUSEDOPTIM_SIMD void transpose(Words* words) {
  const Register a = Register(words[0]), b = Register(words[1]), c = Register(words[2]), d = Register(words[3]);
  const Register ab = FUSEDOPTIM_OP(unpacklo_epi32)(a, b), cd = FUSEDOPTIM_OP(unpacklo_epi32)(c, d);
  const Register ab2 = FUSEDOPTIM_OP(unpackhi_epi32)(a, b), cd2 = FUSEDOPTIM_OP(unpackhi_epi32)(c, d);
  words[0] = Words(FUSEDOPTIM_OP(unpacklo_epi64)(ab, cd));
  words[1] = Words(FUSEDOPTIM_OP(unpackhi_epi64)(ab, cd));
  words[2] = Words(FUSEDOPTIM_OP(unpacklo_epi64)(ab2, cd2));
  words[3] = Words(FUSEDOPTIM_OP(unpackhi_epi64)(ab2, cd2));
}
#undef FUSEDOPTIM_OP
#else
FUSEDOPTIM_SIMD Product multiply(Words x, uint32_t by) {
  Product product;
  for (int i = 0; i < kCounters; ++i) {
    const uint64_t wide = uint64_t(x[i]) * by;
    product.high[i] = uint32_t(wide >> 32);
    product.low[i] = uint32_t(wide);
  }
  return product;
}
FUSEDOPTIM_SIMD void transpose(Words* words) {
  const Words before[4] = {words[0], words[1], words[2], words[3]};
  for (int v = 0; v < 4; ++v) {
    for (int i = 0; i < kCounters; ++i) words[v][i] = before[i % 4][i / 4 * 4 + v];
  }
}
#endif

// The bits of `counters` counters from `counter` on, of which as many are written as make whole vectors.
static __attribute__((noinline)) void random_bits(const RandomKey& key, uint64_t counter, int64_t counters,
                                                  uint16_t* to) {
  // The transposition takes every fourth counter to the same vector: they are numbered so that all come out in order.
  Words order;
  for (int i = 0; i < kCounters; ++i) order[i] = uint32_t(i % 4 * (kCounters / 4) + i / 4);
  for (; counters > 0; counters -= kCounters, counter += kCounters, to += kCounters * kRandomsOfCounter) {
    const Counter first = Counter::of(key, counter);
    Words words[4] = {first.words[0] + order, Words{} + first.words[1], Words{} + first.words[2],
                      Words{} + first.words[3]};
    if (uint32_t(counter) > uint32_t(counter + kCounters - 1)) {  // the upper half of a counter rises among these
      for (int i = 0; i < kCounters; ++i) words[1][i] = Counter::of(key, counter + order[i]).words[1];
    }
    uint32_t k0 = key.seed[0], k1 = key.seed[1];
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Product a = multiply(words[0], kPhiloxMultiplier[0]), b = multiply(words[2], kPhiloxMultiplier[1]);
      words[0] = b.high ^ words[1] ^ k0;
      words[1] = b.low;
      words[2] = a.high ^ words[3] ^ k1;
      words[3] = a.low;
      k0 += kPhiloxWeyl[0];
      k1 += kPhiloxWeyl[1];
    }
    transpose(words);
    std::memcpy(to, words, sizeof(words));
  }
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
