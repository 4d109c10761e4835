// Proves that the square root of csrc/cpu/simd/unrolled.h rounds correctly, given any estimate y within 2^-14 of
// 1 / sqrt(x), relatively:
//
//   g = RN(x y);   h = y / 2;   e = RN(1/2 - g h)
//   G = RN(g + g e);   H = RN(h + h e);   d = RN(x - G G);   result = RN(G + d H)   ==   RN(sqrt(x))
//
// for all mantissas of x. Without underflow and overflow an even exponent only shifts everything, so let 1 <= x < 4,
// and s = sqrt(x) in [1, 2). Of y's error, u <= 2^-14, the step leaves 3/2 u^2 <= 2^-27.4, and half of that of g,
// 2^-25:
//
// - G is off s by at most 2^-24, its own rounding, and s (2^-25 + 2^-27.4): by 2^-22.8.
// - H is off 1 / (2 s) by at most 2^-24 + 2^-25 + 2^-27.4 of it: by 2^-23.3 relatively.
// - x - G G is a multiple of 2^-46 below 2^-20.8, so that d is off by at most 2^-45, and d H for that by 2^-46; for the
//   error of H by 2^-46.1, and s - G - (x - G G) / (2 s) is below 2^-46.6.
//
// Together that is less than 2^-44.5. The results can only differ if a midpoint m between two floats lies that near to
// s: |x - m m| < 2^-42.5. m = M 2^-24 for an odd M, so in units of 2^-48 x is a multiple of 2^25 for x < 2, and of 2^26
// above, within 45 of M M. The program finds all such x, and tries every estimate for them; and, as a check on this
// reasoning, all x with the lowest and the highest estimate. It exits with 1 at the first that is wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

namespace {

constexpr int64_t kBound = 64;
constexpr double kError = 0x1p-14;

// Kept apart from the compiler's contraction by -ffp-contract=off.
bool correct(float x, float y) {
  float g = x * y, h = y * 0.5f;
  const float e = std::fmaf(-g, h, 0.5f);
  g = std::fmaf(g, e, g);
  h = std::fmaf(h, e, h);
  const float d = std::fmaf(-g, g, x);
  if (std::fmaf(d, h, g) == std::sqrt(x)) return true;
  std::printf("wrong: the root of %a from the estimate %a\n", double(x), double(y));
  return false;
}

float estimate(float x, double error) { return float((1 + error) / std::sqrt(double(x))); }

}  // namespace

int main() {
  for (int64_t X = 1 << 23; X < 1 << 24; ++X) {
    for (const float x : {float(X) * 0x1p-23f, float(X) * 0x1p-22f}) {
      if (!correct(x, estimate(x, -kError)) || !correct(x, estimate(x, kError))) return 1;
    }
  }
  int64_t hard = 0, tried = 0;
  for (int64_t M = (1 << 24) + 1; M < 1 << 25; M += 2) {
    const int64_t unit = int64_t(1) << (M * M < int64_t(1) << 49 ? 25 : 26), rest = M * M % unit;
    if (rest > kBound && rest < unit - kBound) continue;
    const float x = float(double(M * M - rest + (rest > kBound ? unit : 0)) * 0x1p-48);
    ++hard;
    const float last = estimate(x, kError);
    for (float y = estimate(x, -kError); y <= last; y = std::nextafter(y, 2.0f)) {
      ++tried;
      if (!correct(x, y)) return 1;
    }
  }
  std::printf("%lld roots near a midpoint, from %lld estimates, all correct\n", static_cast<long long>(hard),
              static_cast<long long>(tried));
  return 0;
}
