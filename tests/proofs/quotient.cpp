// Compares the quotients of csrc/cpu/simd/unrolled.h on this machine, and the estimate that they begin with, with what
// the proof in division.cpp takes for granted: the estimate within 2^-14 for every mantissa, and the quotients of
// vectors equal to division, for operands of every kind and exponent, side by side with ordinary ones.
//
// On x86-64 compile with -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
#if defined(__AVX512F__)
#define FUSEDOPTIM_ISA avx512
#include "cpu/simd/unrolled.h"
#endif

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

#include "hard_quotients.h"

#if defined(__AVX512F__)
using namespace fusedoptim::avx512;
using Two = Unrolled<float, 2, true>;

static double largest_error() {
  double largest = 0;
  for (int64_t R = 1 << 23; R < 1 << 24; R += 16) {
    float r[16], y[16];
    for (int k = 0; k < 16; ++k) r[k] = float(R + k) * 0x1p-23f;
    _mm512_storeu_ps(y, _mm512_rcp14_ps(_mm512_loadu_ps(r)));
    for (int k = 0; k < 16; ++k) {
      const double error = double(r[k]) * double(y[k]) - 1;
      largest = error > largest ? error : -error > largest ? -error : largest;
    }
  }
  return largest;
}

static uint32_t bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return b;
}

static float with(uint32_t sign, int exponent, uint32_t mantissa) {
  const uint32_t b = sign << 31 | uint32_t(exponent + 127) << 23 | (mantissa & 0x7fffff);
  float x;
  std::memcpy(&x, &b, 4);
  return x;
}

// Whether a pack with these numbers, side by side, is divided as division divides them.
static bool correct(const float (&a)[Two::kLanes], const float (&b)[Two::kLanes]) {
  Two numerators, divisors;
  load_into(numerators, a);
  load_into(divisors, b);
  float found[Two::kLanes];
  store(found, numerators / divisors);
  for (int k = 0; k < Two::kLanes; ++k) {
    const volatile float x = a[k], y = b[k];
    const float right = x / y;
    if (bits(right) != bits(found[k]) && !(right != right && found[k] != found[k])) {
      std::printf("wrong: %a / %a is %a, not %a\n", double(x), double(y), double(right), double(found[k]));
      return false;
    }
  }
  return true;
}

// Quotients next to a midpoint, which show the least mistake in the last bit: with the largest divisors, and others.
static bool hard_ones() {
  std::mt19937_64 random(1);
  float a[Two::kLanes], b[Two::kLanes];
  int count = 0;
  for (int i = 0; i < 40000; ++i) {
    const int64_t R = i < 8192 ? kHigh - 1 - i : kLow + int64_t(random() % kLow);
    const bool good = for_each_hard(R, [&](int64_t A) {
      a[count] = with(uint32_t(random() & 1), int(random() % 21) - 10, uint32_t(A));
      b[count] = with(0, int(random() % 21) - 10, uint32_t(R));
      if (++count < Two::kLanes) return true;
      count = 0;
      return correct(a, b);
    });
    if (!good) return false;
  }
  return true;
}

// All exponents, those of a pack near to one another; and among them what is no ordinary number.
static bool ones_of_all_kinds() {
  std::mt19937_64 random(2);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {0, -0.0f, 1, -1, inf, -inf, nan, 0x1p-149f, 0x1.fffffep127f, 0x1p-40f, 0x1p50f};
  for (int64_t i = 0; i < 2000000; ++i) {
    float a[Two::kLanes], b[Two::kLanes];
    const bool specials = random() % 4 == 0;
    for (float* numbers : {a, b}) {
      const int centre = int(random() % 249) - 124;
      for (int k = 0; k < Two::kLanes; ++k) {
        const bool one = specials && random() % 16 == 0;
        numbers[k] = one ? special[random() % (sizeof special / sizeof *special)]
                         : with(uint32_t(random() & 1), centre + int(random() % 5) - 2, uint32_t(random()));
      }
    }
    if (!correct(a, b)) return false;
  }
  return true;
}

int main() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq")) {
    std::printf("all correct: nothing to try without AVX-512\n");
    return 0;
  }
  if (!(largest_error() < 0x1p-14)) {
    std::printf("wrong: the estimate is off by %g\n", largest_error());
    return 1;
  }
  if (!hard_ones() || !ones_of_all_kinds()) return 1;
  std::printf("all correct\n");
}
#else
int main() { std::printf("all correct: nothing to try on this architecture\n"); }
#endif
