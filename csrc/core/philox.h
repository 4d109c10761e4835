// Random bits for stochastic rounding: Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011). They depend on nothing but the seed, the step, the parameter, which of its operands is rounded, and the place
// of the element in the whole tensor.
#pragma once

#include <cstdint>

#include "rules/rule.h"

namespace fusedoptim {

constexpr uint32_t kPhiloxMultiplier[2] = {0xD2511F53, 0xCD9E8D57}, kPhiloxWeyl[2] = {0x9E3779B9, 0xBB67AE85};
constexpr int kPhiloxRounds = 7;  // the fewest that pass all tests of randomness in that paper

constexpr int kRandomsOfCounter = 8;  // 16 bits for each of so many elements

// All that does not change from element to element.
struct RandomKey {
  uint32_t seed[2];
  uint32_t step, parameter;
  uint32_t operand;

  static FUSEDOPTIM_INLINE RandomKey of(uint64_t seed, double step, uint32_t parameter, int operand) {
    const uint64_t count = step >= 0 && step < 0x1p63 ? uint64_t(step) : 0;
    return {{uint32_t(seed), uint32_t(seed >> 32)}, uint32_t(count), parameter, uint32_t(operand)};
  }
};

// The counter of elements 8 n to 8 n + 7.
struct Counter {
  uint32_t words[4];

  static FUSEDOPTIM_INLINE Counter of(const RandomKey& key, uint64_t n) {
    return {{uint32_t(n), uint32_t(n >> 32) | key.operand << 24, key.parameter, key.step}};
  }
};

// Of element 8 n + i the bits are half i % 2, the lower one first, of word i / 2.
FUSEDOPTIM_INLINE Counter philox(Counter c, const RandomKey& key) {
  uint32_t k0 = key.seed[0], k1 = key.seed[1];
  // Numbers of their own: there are no such arrays in device code.
  constexpr uint32_t kA = kPhiloxMultiplier[0], kB = kPhiloxMultiplier[1], kW0 = kPhiloxWeyl[0], kW1 = kPhiloxWeyl[1];
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t a = uint64_t(kA) * c.words[0], b = uint64_t(kB) * c.words[2];
    c = {{uint32_t(b >> 32) ^ c.words[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c.words[3] ^ k1, uint32_t(a)}};
    k0 += kW0;
    k1 += kW1;
  }
  return c;
}

}  // namespace fusedoptim
