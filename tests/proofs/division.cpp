// Proves that dividing a float by a float r with one multiplication and two fmas rounds correctly, given the
// reciprocal:
//
//   y = RN(1 / r);   q = RN(a y);   e = RN(a - q r);   result = RN(q + e y)   ==   RN(a / r)
//
// for all mantissas of a and of r. Without underflow and overflow exponents only shift everything, so let 1 <= a, r <
// 2, a = A 2^-23, r = R 2^-23, and t = a / r in (1/2, 2).
//
// The same for a reciprocal that was refined from an estimate y0 within 2^-14 of 1 / r, relatively
// (csrc/cpu/simd/unrolled.h):
//
//   d = RN(1 - r y0);   y = RN(y0 + y0 RN(d + d d))
//
// Before its last rounding that y is off by d^3, at most 2^-42, and by the roundings of d and of d + d d, at most 2^-38
// each: by less than 2^-36, relatively. So it is what some number that near to 1 / r rounds to: mostly RN(1 / r), and
// where a midpoint lies as near, one of two neighbours. All of them are tried.
//
// Where it could fail. y differs from 1/r by at most 2^-25 + 2^-36, q from t by at most 2^-22 / r, so e - (a - q r) is
// at most 2^-47 and q + e y differs from t by at most 2^-46. The results can only differ if a midpoint m between two
// floats lies that near to t: |a - m r| <= 2^-45. For t < 1, m = M 2^-25, so |A 2^25 - M R| <= 8; for t >= 1, m = M
// 2^-24, so |A 2^24 - M R| <= 4. For each R and each k up to twice that bound, the solutions A of A 2^s = k (mod R) are
// few (hard_quotients.h); the program tries them all, and, as a check on this reasoning, every A for some R. It exits
// with 1 at the first that is wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "hard_quotients.h"

namespace {

constexpr int64_t kLeftOut = 64;

// Kept apart from the compiler's contraction by -ffp-contract=off.
bool correct(float a, float r, float y) {
  const float q = a * y;
  const float e = std::fmaf(-q, r, a);
  return std::fmaf(e, y, q) == a / r;
}

}  // namespace

int main() {
  int64_t tried = 0, doubtful = 0;
  for (int64_t R = kLow; R < kHigh; ++R) {
    const float r = float(R) * 0x1p-23f, y = 1.0f / r;
    const float low = float(1.0 / double(r) * (1 - 0x1p-36)), high = float(1.0 / double(r) * (1 + 0x1p-36));
    const bool doubt = low != high && R < kHigh - kLeftOut;
    doubtful += doubt;
    const auto try_one = [&](int64_t A) {
      ++tried;
      const float a = float(A) * 0x1p-23f;
      if (correct(a, r, y) && (!doubt || (correct(a, r, low) && correct(a, r, high)))) return true;
      std::printf("wrong: %lld / %.9g\n", static_cast<long long>(A), double(r));
      return false;
    };
    if (R - kLow < 3 || kHigh - R < 3 || R % 1000003 == 0) {
      for (int64_t A = kLow; A < kHigh; ++A) {
        if (!try_one(A)) return 1;
      }
    }
    if (!for_each_hard(R, try_one)) return 1;
  }
  std::printf("%lld quotients, %lld reciprocals in doubt, all correct\n", static_cast<long long>(tried),
              static_cast<long long>(doubtful));
  return 0;
}
