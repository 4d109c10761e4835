// Proves that dividing a float by a float r with one multiplication and two fmas rounds correctly, given the
// reciprocal:
//
//   y = RN(1 / r);   q = RN(a y);   e = RN(a - q r);   result = RN(q + e y)   ==   RN(a / r)
//
// for all mantissas of a and of r. Without underflow and overflow exponents only shift everything, so let 1 <= a, r <
// 2, a = A 2^-23, r = R 2^-23, and t = a / r in (1/2, 2).
//
// Where it could fail. y differs from 1/r by at most 2^-25, q from t by at most 2^-22 / r, so e - (a - q r) is
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

// Kept apart from the compiler's contraction by -ffp-contract=off.
bool correct(float a, float r, float y) {
  const float q = a * y;
  const float e = std::fmaf(-q, r, a);
  return std::fmaf(e, y, q) == a / r;
}

}  // namespace

int main() {
  int64_t tried = 0;
  for (int64_t R = kLow; R < kHigh; ++R) {
    const float r = float(R) * 0x1p-23f, y = 1.0f / r;
    const auto try_one = [&](int64_t A) {
      ++tried;
      const float a = float(A) * 0x1p-23f;
      if (correct(a, r, y)) return true;
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
  std::printf("%lld quotients, all correct\n", static_cast<long long>(tried));
  return 0;
}
