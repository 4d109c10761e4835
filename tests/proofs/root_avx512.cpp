// Compares the square roots of csrc/cpu/simd/unrolled.h on this machine, and the estimate that they begin with, with
// what the proof in root.cpp takes for granted: the estimate within 2^-14 for every mantissa, and the roots equal to
// the instruction's, for numbers of every kind and exponent, side by side with ordinary ones.
//
// On x86-64 compile with -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
#if defined(__AVX512F__)
#define FUSEDOPTIM_ISA avx512
#include "cpu/simd/unrolled.h"
#endif

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

#if defined(__AVX512F__)
using namespace fusedoptim::avx512;
using Two = Unrolled<float, 2, true>;

static double largest_error() {
  double largest = 0;
  for (int64_t X = 1 << 23; X < 1 << 25; X += 16) {
    float x[16], y[16];
    for (int k = 0; k < 16; ++k) x[k] = X < 1 << 24 ? float(X + k) * 0x1p-23f : float(X + k - (1 << 23)) * 0x1p-22f;
    _mm512_storeu_ps(y, _mm512_rsqrt14_ps(_mm512_loadu_ps(x)));
    for (int k = 0; k < 16; ++k) {
      const double error = std::fabs(std::sqrt(double(x[k])) * double(y[k]) - 1);
      largest = error > largest ? error : largest;
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

// Whether the roots of these numbers, side by side, are those of the instruction.
static bool correct(const float (&x)[Two::kLanes]) {
  Two numbers;
  load_into(numbers, x);
  float found[Two::kLanes];
  store(found, sqrt(numbers));
  for (int k = 0; k < Two::kLanes; ++k) {
    const float right = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x[k])));
    if (bits(right) != bits(found[k]) && !(right != right && found[k] != found[k])) {
      std::printf("wrong: the root of %a is %a, not %a\n", double(x[k]), double(right), double(found[k]));
      return false;
    }
  }
  return true;
}

// Every mantissa, at the least exponent that the multiplications take, those about it, and others.
static bool all_mantissas() {
  float x[Two::kLanes];
  for (const int exponent : {-102, -101, -100, -99, -1, 0, 126, 127}) {
    for (uint32_t mantissa = 0; mantissa < 1 << 23; mantissa += Two::kLanes) {
      for (int k = 0; k < Two::kLanes; ++k) x[k] = with(0, exponent, mantissa + uint32_t(k));
      if (!correct(x)) return false;
    }
  }
  return true;
}

// All exponents and signs, those of a vector near to one another; and among them what is no ordinary number.
static bool ones_of_all_kinds() {
  std::mt19937_64 random(2);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {0, -0.0f, 1, -1, inf, -inf, nan, 0x1p-149f, -0x1p-149f, 0x1.fffffep127f, 0x1p-100f};
  for (int64_t i = 0; i < 2000000; ++i) {
    float x[Two::kLanes];
    const uint64_t specials = random() % 4;  // none, any, or only zeros
    const int centre = int(random() % 249) - 124;
    for (float& number : x) {
      const bool one = specials != 0 && random() % 16 == 0;
      const uint64_t which = specials == 1 ? random() % (sizeof special / sizeof *special) : random() % 2;
      number = one ? special[which]
                   : with(specials == 3 && random() % 64 == 0, centre + int(random() % 5) - 2, uint32_t(random()));
    }
    if (!correct(x)) return false;
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
  if (!all_mantissas() || !ones_of_all_kinds()) return 1;
  std::printf("all correct\n");
}
#else
int main() { std::printf("all correct: nothing to try on this architecture\n"); }
#endif
