// For a divisor R 2^-23 in [1, 2): all numerators A 2^-23 in [1, 2) whose quotient lies nearest to a midpoint between
// two floats, as the reasoning in division.cpp needs them, found by modular division.
#pragma once

#include <cstdint>
#include <initializer_list>

constexpr int64_t kLow = 1 << 23, kHigh = 1 << 24;
constexpr int64_t kBound = 16;

// x / 2^n modulo the odd number m.
inline int64_t halve(int64_t x, int n, int64_t m) {
  for (int i = 0; i < n; ++i) x = (x % 2 == 0 ? x : x + m) / 2;
  return x;
}

// Calls `visit` with each A until it returns false, which is then returned.
template <class Visit>
bool for_each_hard(int64_t R, Visit visit) {
  int zeros = 0;
  int64_t odd = R;
  for (; odd % 2 == 0; odd /= 2) ++zeros;
  for (const int shift : {25, 24}) {
    // A 2^shift = k + M 2^zeros odd: k is a multiple of 2^zeros, and A = (k / 2^zeros) / 2^(shift - zeros) mod odd.
    const int64_t unit = int64_t(1) << zeros, inverse = halve(1 % odd, shift - zeros, odd);
    for (int64_t k = -kBound / unit; k <= kBound / unit; ++k) {
      const int64_t first = (k + kBound * odd) % odd * inverse % odd;
      for (int64_t A = first + (kLow - first + odd - 1) / odd * odd; A < kHigh; A += odd) {
        if (!visit(A)) return false;
      }
    }
  }
  return true;
}
