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

// The halves of a, exchanged, and into the lower one b and the key.
FUSEDOPTIM_SIMD Word last_round(Word a, Word b, uint64_t key) {
#if defined(__AVX512F__)
  const __m512i swapped = __m512i(swap_halves(a));
  return Word(_mm512_mask_ternarylogic_epi32(swapped, 0x5555, __m512i(b), _mm512_set1_epi64(int64_t(key)), 0x96));
#else
  return swap_halves(a) ^ ((b ^ key) & 0xffffffff);
#endif
}

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

// Random bits for consecutive elements.
class RandomStream {
 public:
  // Vectors of counters that go through the rounds together: one alone waits for its own results most of the time.
  static constexpr int kTogether = 2;
  static constexpr int kAtOnce = kTogether * kCounters * kRandomsOfCounter;
  static constexpr int64_t kMost = 1024;  // elements between two calls of `begin`

  void start(const RandomKey& key) {
    key_ = key;
    prepare(0);
  }
  // Makes the bits of `count` elements, at most kMost, from number `place` of the tensor on, and returns them.
  __attribute__((noinline)) const uint16_t* make(int64_t place, int64_t count) {
    const int64_t before = place % kAtOnce;
    uint64_t counter = uint64_t(place / kAtOnce * kTogether * kCounters);
    for (int64_t i = 0; i < before + count; i += kAtOnce) {
      make(counter, bits_ + i);
      counter += kTogether * kCounters;
    }
    return bits_ + before;
  }

 private:
  using Words = Word[kTogether];

  FUSEDOPTIM_SIMD static void multiply_all(Words& products, const Words& words, uint32_t multiplier) {
    for (int k = 0; k < kTogether; ++k) products[k] = multiply(words[k], Word{} + multiplier);
  }
  FUSEDOPTIM_SIMD void make(uint64_t counter, uint16_t* to) {
    if (counter >> 32 != high_) prepare(uint32_t(counter >> 32));
    // In the end, those in even lanes come first.
    Word order;
    for (int i = 0; i < kCounters; ++i) order[i] = uint64_t(i % 2 * (kCounters / 2) + i / 2);
    Words a, b, words[4];
    // Half of what the first two rounds compute is the same for all counters.
    for (int k = 0; k < kTogether; ++k) words[0][k] = order + (counter + uint64_t(k * kCounters));
    multiply_all(a, words[0], kPhiloxMultiplier[0]);
    for (int k = 0; k < kTogether; ++k) words[2][k] = swap_halves(a[k]) ^ same_[0];
    multiply_all(b, words[2], kPhiloxMultiplier[1]);
    for (int k = 0; k < kTogether; ++k) {
      words[0][k] = swap_halves(b[k]) ^ same_[1];
      words[1][k] = b[k];
      words[2][k] = a[k] ^ same_[2];
      words[3][k] = Word{} + same_[3];  // which has round 2's key in it
    }
#pragma GCC unroll 10
    for (int round = 2; round < kPhiloxRounds - 1; ++round) {
      multiply_all(a, words[0], kPhiloxMultiplier[0]);
      multiply_all(b, words[2], kPhiloxMultiplier[1]);
      for (int k = 0; k < kTogether; ++k) {
        words[0][k] = swap_halves(b[k]) ^ words[1][k] ^ keys_[0][round];
        words[1][k] = b[k];
        words[2][k] = swap_halves(a[k]) ^ words[3][k];
        if (round > 2) words[2][k] ^= keys_[1][round];
        words[3][k] = a[k];
      }
    }
    multiply_all(a, words[0], kPhiloxMultiplier[0]);
    multiply_all(b, words[2], kPhiloxMultiplier[1]);
    for (int k = 0; k < kTogether; ++k) {
      const Word lower = last_round(b[k], words[1][k], keys_[0][kPhiloxRounds - 1]);
      const Word upper = last_round(a[k], words[3][k], keys_[1][kPhiloxRounds - 1]);
      const Word of_counters[2] = {interleave<0>(lower, upper), interleave<1>(lower, upper)};
      std::memcpy(to + k * (kAtOnce / kTogether), of_counters, sizeof(of_counters));
    }
  }
  __attribute__((noinline)) void prepare(uint32_t high) {
    high_ = high;
    const Counter c = Counter::of(key_, uint64_t(high) << 32);
    uint32_t k[2] = {key_.seed[0], key_.seed[1]};
    for (int round = 0; round < kPhiloxRounds; ++round) {
      for (int half = 0; half < 2; ++half) {
        keys_[half][round] = k[half];
        k[half] += kPhiloxWeyl[half];
      }
    }
    const uint64_t b = uint64_t(kPhiloxMultiplier[1]) * c.words[2];
    const uint64_t word0 = uint32_t(b >> 32) ^ c.words[1] ^ keys_[0][0], a = word0 * kPhiloxMultiplier[0];
    same_[0] = c.words[3] ^ keys_[1][0];
    same_[1] = uint32_t(b) ^ keys_[0][1];
    same_[2] = (a >> 32) ^ keys_[1][1];
    same_[3] = uint32_t(a) ^ keys_[1][2];
  }

  RandomKey key_;
  uint64_t high_, same_[4], keys_[2][kPhiloxRounds];
  alignas(64) uint16_t bits_[kMost + 2 * kAtOnce];
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
